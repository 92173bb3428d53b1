"""MNIST and data sets made like it: four IDX files of grey pictures and their classes."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Int, UInt8
from torch import Tensor

from ..config import DataConfig
from ..errors import DataError
from .base import Dataset, Signature, Source, standardised
from .idx import read_idx
from .places import Place

SIZE, CLASSES = (28, 28), 10
FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))

Pictures = tuple[UInt8[Tensor, "n 28 28"], Int[Tensor, " n"]]


def idx_place(title: str, folders: tuple[str, ...], get: str, system: Path | None = None) -> Place:
    """Return where four such files may lie: in the folder named or in one of ``folders`` below it."""
    return Place(title, ("", *folders), _holds, get, system)


def idx_source(place: Place) -> Source:
    """Return the data set at a place, its pictures standardised by the training pictures' mean and deviation."""

    def load(config: DataConfig) -> Dataset:
        (train, train_targets), (test, test_targets) = read_pictures(place, config)
        return standardised(train.float(), train_targets, test.float(), test_targets)

    return Source(load, place.status, signature=lambda config: Signature((1, *SIZE), CLASSES))


def read_pictures(place: Place, config: DataConfig) -> tuple[Pictures, Pictures]:
    """Return the pictures and classes to train on and those to test on, as they are in the files.

    Raises:
        DataError: the data set is not here, or one of its files is wrong; it is named.
    """
    folder = place.require(config)
    return _read_part(place, folder, "train"), _read_part(place, folder, "t10k")


def _read_part(place: Place, folder: Path, part: str) -> Pictures:
    images, labels = (
        read_idx(_required(place, folder, f"{part}-{kind}-idx{rank}-ubyte"), rank)
        for kind, rank in (("images", 3), ("labels", 1))
    )
    if images.shape[1:] != SIZE:
        raise _wrong(place, folder, f"{part}-images", "pictures of 28 x 28", tuple(images.shape))
    if len(images) != len(labels):
        raise _wrong(place, folder, f"{part}-labels", f"{len(images)} labels, one a picture", len(labels))
    if len(labels) == 0 or labels.max() >= CLASSES:
        raise _wrong(place, folder, f"{part}-labels", "labels from 0 to 9", int(labels.max()) if len(labels) else None)
    return images, labels.long()


def _holds(folder: Path) -> bool:
    return any(_idx_file(folder, name) for name in FILES)


def _idx_file(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _required(place: Place, folder: Path, name: str) -> Path:
    path = _idx_file(folder, name)
    if path is None:
        raise _wrong(place, folder, name, f"{name} or {name}.gz", None)
    return path


def _wrong(place: Place, folder: Path, name: str, expected: str, got: object) -> DataError:
    return place.error("load_dataset", f"bad or missing {folder / name}", expected, got)
