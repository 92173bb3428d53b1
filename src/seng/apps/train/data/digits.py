"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..config import DataConfig
from .base import Dataset, Signature, Source, standardised


def load_digits(config: DataConfig) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,347 to train on and 450 to test on.

    The split is one fixed random permutation, the same for every seed.
    """
    table = torch.from_numpy(_table())[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    images, targets = table[:, :64].float().reshape(-1, 8, 8), table[:, 64].long()
    return standardised(images[:1347], targets[:1347], images[1347:], targets[1347:])


def _table() -> np.ndarray:
    """Return a row a picture, 64 pixels and the label, from the package's own file: importing it takes a second."""
    package = find_spec("sklearn")
    for place in package.submodule_search_locations or [] if package else []:
        path = Path(place, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits as sklearn_digits

    pixels, labels = sklearn_digits(return_X_y=True)
    return np.column_stack([pixels, labels])


DIGITS = Source(
    load_digits,
    status=lambda config: "comes with scikit-learn",
    signature=lambda config: Signature((1, 8, 8), classes=10),
)
