"""Pictures in folders, a folder a class, laid out as ImageNet's: train/<class>/*.JPEG and val/<class>/*.JPEG.

Classes are numbered in the order of their folders' names, which for ImageNet's (n01440764 ...) is the usual order.
Files whose names do not end as a picture's, or begin with a dot, are passed over, and so is whatever lies deeper.
ImageNet's validation pictures come in one folder: they have to be moved into class folders first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from .base import Dataset, Signature, Source
from .decode import NUMBERS, read_picture
from .draws import uniforms
from .pictures import Scale
from .places import Place

SIZE, CLASSES = 224, 1000
SCALE = Scale(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))  # the ones usual for ImageNet
ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that are read from their files when they are asked for.

    Attributes:
        folder: what the paths begin with.
        paths: a picture's path below it, as bytes of fixed length: a million objects would be copied to each worker.
        targets: the pictures' classes.
        size: height and width that they are brought to.
        augment: whether each draw cuts another part out and mirrors half of them; else it is the middle.
    """

    folder: str
    paths: np.ndarray
    targets: Int[Tensor, " m"]
    size: int
    augment: bool = False

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.targets)

    def pixels(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """Read some samples as bytes, cut and mirrored if they are to be, with their classes.

        Raises:
            DataError: a file cannot be read; it is named.
        """
        random = uniforms(indices, draw, NUMBERS) if self.augment else [None] * len(indices)
        pictures = np.empty((len(indices), self.size, self.size, 3), dtype=np.uint8)
        for place, (path, numbers) in enumerate(zip(self.paths[indices.numpy()], random, strict=True)):
            pictures[place] = read_picture(os.path.join(self.folder, os.fsdecode(path)), self.size, numbers)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2), self.targets[indices]

    def scaled(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return pictures with the channels' means and deviations taken out."""
        return SCALE(pixels)

    def batch(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """Return the inputs and targets of some samples, in the order asked."""
        pixels, targets = self.pixels(indices, draw)
        return self.scaled(pixels), targets


def load_imagenet(config: DataConfig) -> Dataset:
    """Find the pictures below train/ and val/; none is read yet.

    Args:
        config: ``size`` is the height and width that pictures are brought to (0: 224), ``augment`` cuts random parts
            out of the training pictures and mirrors half of them.

    Raises:
        DataError: the folders are not here, their classes differ or are more than 1,000, or one is empty.
        ConfigError: the size is negative.
    """
    place = PLACE.require(config)
    classes = {part: _classes(place / part) for part in ("train", "val")}
    if classes["train"] != classes["val"]:
        only = sorted(set(classes["train"]) ^ set(classes["val"]))
        expected = "the same classes in both"
        raise _wrong(f"{place / 'train'} and val differ", expected, f"only in one of them: {only[:4]}")
    if not 1 <= len(classes["train"]) <= CLASSES:
        raise _wrong(f"{place / 'train'} has the wrong number of classes", f"1 to {CLASSES}", len(classes["train"]))
    train, val = (_pictures(place / part, names, _size(config)) for part, names in classes.items())
    return Dataset(PictureFiles(*train, augment=config.augment), PictureFiles(*val))


def _classes(folder: Path) -> list[str]:
    names = _names(folder, lambda entry: entry.is_dir() and not entry.name.startswith("."))
    if not names:
        fix = "Move its pictures into a folder for each class"
        raise _wrong(f"{folder} has no class folders", f"{folder}/<class>/*.JPEG", names, fix)
    return names


def _pictures(folder: Path, classes: Sequence[str], size: int) -> tuple[str, np.ndarray, Int[Tensor, " m"], int]:
    paths: list[bytes] = []
    counts = []
    for name in classes:
        found = _names(folder / name, _is_picture)
        if not found:
            raise _wrong(f"{folder / name} is empty", f"pictures ending in {', '.join(ENDINGS)}", None)
        paths += (os.fsencode(os.path.join(name, file)) for file in found)
        counts.append(len(found))
    targets = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return str(folder), np.array(paths), targets, size


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if wanted(entry))
    except OSError as error:
        raise _wrong(f"{folder} cannot be read", "a folder", str(error)) from error


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".") and entry.is_file()


def _size(config: DataConfig) -> int:
    if config.size < 0:
        fix = "Correct data.size"
        raise ConfigError("load_imagenet", "size is out of range", expected="0 or more", got=config.size, fix=fix)
    return config.size or SIZE


def _wrong(problem: str, expected: str, got: object, fix: str = "Complete or correct the folders") -> DataError:
    return DataError("load_imagenet", problem, expected=expected, got=got, fix=fix)


def _holds(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


PLACE = Place(
    "ImageNet",
    ("", "imagenet", "ILSVRC/Data/CLS-LOC"),
    _holds,
    get="ILSVRC2012 from https://image-net.org, as train/<class>/*.JPEG and val/<class>/*.JPEG",
)

IMAGENET = Source(
    load_imagenet,
    PLACE.status,
    signature=lambda config: Signature((3, _size(config), _size(config)), CLASSES),
    options=frozenset({"augment", "size"}),
)
