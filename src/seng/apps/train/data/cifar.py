"""CIFAR-10: 60,000 colour pictures of 32 x 32 pixels in 10 classes, from either of the two archives handed out.

Both hold five batches to train on and one to test on, each of 10,000 pictures; fewer are read too, if all six have
as many. In the binary archive a picture is 3,073 bytes: its label, then 1,024 each of red, green and blue. In the
python archive a batch is a pickled dictionary of "data" ``[n, 3072]``, "labels" and "batch_label".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ..config import DataConfig
from .base import Dataset, Signature, Source
from .content import damaged, read_content, read_members
from .pickles import read_pickle
from .pictures import Scale, StoredPictures
from .places import Place

SHAPE, CLASSES = (3, 32, 32), 10
PIXELS = 3 * 32 * 32
SCALE = Scale(mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616))  # of the 50,000 training pictures

# The batches of each form, with what the python archive calls them inside.
TITLES = {f"data_batch_{i}": f"training batch {i} of 5" for i in range(1, 6)} | {"test_batch": "testing batch 1 of 1"}
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "cifar-10-binary.tar", "cifar-10-python.tar")
GET_CIFAR = "cifar-10-binary.tar.gz or cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"

Batch = tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]


def load_cifar(config: DataConfig) -> Dataset:
    """Load CIFAR-10 from the folder of either archive, or from the archive itself.

    Args:
        config: ``augment`` shifts the training pictures by up to four pixels and mirrors half of them.

    Raises:
        DataError: the data set is not here, or a file is missing, cut, mislabelled or another; it is named.
    """
    place = PLACE.require(config)
    files = _found(place)
    batches = {name: _read_batch(place, files, name) for name in TITLES}
    counts = {name: len(labels) for name, (_, labels) in batches.items()}
    if len(set(counts.values())) > 1:
        shortest = min(counts, key=lambda name: counts[name])
        expected = f"{max(counts.values())} pictures, as in another batch"
        raise damaged("load_cifar", f"{shortest} of {place}", "cut short", expected, counts[shortest])
    test = batches.pop("test_batch")
    pictures, targets = (torch.cat(parts) for parts in zip(*batches.values(), strict=True))
    return Dataset(StoredPictures(pictures, targets, SCALE, config.augment), StoredPictures(*test, SCALE))


def _found(place: Path) -> Mapping[str, bytes | Path]:
    """Return the batches that are there: their paths in a folder, their bytes in an archive."""
    if place.is_dir():
        return {path.name: path for name in TITLES for path in (place / name, place / f"{name}.bin") if path.is_file()}
    return read_members(place)


def _read_batch(place: Path, files: Mapping[str, bytes | Path], name: str) -> Batch:
    binary = any(found.endswith(".bin") for found in files)
    file = f"{name}.bin" if binary else name
    if file not in files:
        problem = f"{file} is missing in {place}"
        raise PLACE.error("load_cifar", problem, f"the batches {', '.join(TITLES)}", sorted(files)[:8])
    found = files[file]
    source = str(found) if isinstance(found, Path) else f"{file} of {place}"
    content = read_content(found) if isinstance(found, Path) else found
    labels, pixels = _from_records(content, source) if binary else _from_pickle(content, source, TITLES[name])
    if not isinstance(labels, list) or len(labels) != len(pixels):
        got = len(labels) if isinstance(labels, list) else labels
        raise damaged("load_cifar", source, "mislabelled", f"{len(pixels)} labels, one a picture", got)
    if wrong := [label for label in labels if not isinstance(label, int) or not 0 <= label < CLASSES]:
        raise damaged("load_cifar", source, "mislabelled", "labels from 0 to 9", wrong[0])
    return torch.tensor(pixels).view(-1, *SHAPE), torch.tensor(labels)


def _from_records(content: bytes, source: str) -> tuple[Any, np.ndarray]:
    """Return labels and pixels ``[n, 3072]`` of a batch in the binary format."""
    if not content or len(content) % (1 + PIXELS):
        raise damaged("load_cifar", source, "cut short", f"whole pictures of {1 + PIXELS} bytes", len(content))
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 0].tolist(), records[:, 1:]


def _from_pickle(content: bytes, source: str, title: str) -> tuple[Any, np.ndarray]:
    """Return labels and pixels ``[n, 3072]`` of a batch in the python format."""
    batch = read_pickle(content, source)
    pixels, labels, found = (batch.get(key) for key in ("data", "labels", "batch_label"))
    if found not in (title, title.encode()):
        raise damaged("load_cifar", source, "another batch", repr(title), found)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        shape = getattr(pixels, "shape", None)
        raise damaged("load_cifar", source, "wrongly sized", f"data of shape (n, {PIXELS})", shape)
    return labels, pixels


def _holds(path: Path) -> bool:
    if path.is_dir():
        return any((path / f"{name}{ending}").is_file() for name in TITLES for ending in ("", ".bin"))
    return path.is_file()


PLACE = Place(
    "CIFAR-10",
    tuple(f"{above}{name}" for above in ("", "cifar10/") for name in ("", *FOLDERS, *ARCHIVES)),
    _holds,
    get=GET_CIFAR,
)

CIFAR10 = Source(
    load_cifar,
    PLACE.status,
    signature=lambda config: Signature(SHAPE, CLASSES),
    options=frozenset({"augment"}),
)
