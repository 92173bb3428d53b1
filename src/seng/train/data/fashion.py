"""Fashion-MNIST from its four IDX files."""

from __future__ import annotations

import os
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from ..config import DataConfig
from ..errors import DataError
from .base import Dataset, Signature, Source, standardised
from .idx import read_idx

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
INSTALL_FASHION = "apt-get install dataset-fashion-mnist"
GET_FASHION = f"Install it with `{INSTALL_FASHION}`, or give its folder with --data-dir or SENG_DATA"


def find_fashion(config: DataConfig) -> Path | None:
    """Return the folder of Fashion-MNIST's four files, or None.

    A folder that was named (``data_dir``, else the environment's SENG_DATA) is the only one searched, with
    its subfolder fashion-mnist; without a name it is Debian's.
    """
    named = config.data_dir or os.environ.get("SENG_DATA")
    folders = [Path(named), Path(named, "fashion-mnist")] if named else [DEBIAN_FASHION]
    return next((folder for folder in folders if _idx_file(folder, "train-images-idx3-ubyte")), None)


def _idx_file(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _fashion_split(folder: Path, prefix: str) -> tuple[Float[Tensor, "n h w"], Int[Tensor, " n"]]:
    images, labels = (
        read_idx(_required(folder, f"{prefix}-{kind}-idx{rank}-ubyte"), rank)
        for kind, rank in (("images", 3), ("labels", 1))
    )
    if images.shape[1:] != (28, 28):
        raise _wrong(folder, f"{prefix}-images", "pictures of 28 x 28", tuple(images.shape))
    if len(images) != len(labels):
        raise _wrong(folder, f"{prefix}-labels", f"{len(images)} labels, one a picture", len(labels))
    if len(labels) == 0 or labels.max() > 9:
        raise _wrong(folder, f"{prefix}-labels", "labels from 0 to 9", int(labels.max()) if len(labels) else None)
    return images.float(), labels.long()


def _required(folder: Path, name: str) -> Path:
    path = _idx_file(folder, name)
    if path is None:
        raise _wrong(folder, name, f"{name} or {name}.gz", None)
    return path


def _wrong(folder: Path, name: str, expected: str, got: object) -> DataError:
    return DataError("load_fashion", f"bad or missing {folder / name}", expected=expected, got=got, fix=GET_FASHION)


def load_fashion(config: DataConfig) -> Dataset:
    """Load Fashion-MNIST from its four IDX files: 60,000 pictures to train on and 10,000 to test on."""
    folder = find_fashion(config)
    if folder is None:
        named = config.data_dir or os.environ.get("SENG_DATA") or str(DEBIAN_FASHION)
        problem = "Fashion-MNIST is not here"
        raise DataError("load_fashion", problem, expected="a folder with its files", got=named, fix=GET_FASHION)
    return standardised(*_fashion_split(folder, "train"), *_fashion_split(folder, "t10k"))


def fashion_status(config: DataConfig) -> str:
    """Say where Fashion-MNIST was found, or how to get it."""
    folder = find_fashion(config)
    return f"found in {folder}" if folder else f"absent: {INSTALL_FASHION}"


FASHION = Source(
    load_fashion,
    fashion_status,
    signature=lambda config: Signature((1, 28, 28), classes=10),
)
