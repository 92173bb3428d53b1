"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in 10 classes."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from ..config import DataConfig
from .base import Dataset, Signature, Source, TensorSplit
from .idx_pictures import SIZE, idx_place, idx_source, read_pictures

PLACE = idx_place(
    "Fashion-MNIST",
    ("fashion-mnist", "FashionMNIST/raw"),
    get="apt-get install dataset-fashion-mnist",
    system=Path("/usr/share/datasets/fashion-mnist"),
)
find_fashion = PLACE.find

FASHION = idx_source(PLACE)


def load_pictures(config: DataConfig) -> Dataset:
    """Load the pictures, pixels from 0 to 1, to be reconstructed: each is its own target, as one row of 784 numbers."""
    (train, _), (test, _) = read_pictures(PLACE, config)
    return Dataset(_own_targets(train), _own_targets(test))


def _own_targets(pictures: UInt8[Tensor, "n h w"]) -> TensorSplit:
    pixels = pictures.float() / 255
    return TensorSplit(pixels.unsqueeze(1), pixels.flatten(1))  # two views of the same numbers


FASHION_PICTURES = Source(load_pictures, PLACE.status, signature=lambda config: Signature((1, *SIZE), classes=None))
