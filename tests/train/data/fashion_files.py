"""Small data sets in Fashion-MNIST's format, byte for byte, for the tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import torch

NAMES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}


def images(count: int, size: int = 28) -> bytes:
    """Return an IDX file of random pictures."""
    values = torch.randint(0, 256, (count, size, size), generator=torch.Generator().manual_seed(count))
    return struct.pack(">IIII", 0x803, count, size, size) + bytes(values.flatten().tolist())


def labels(count: int) -> bytes:
    """Return an IDX file of the labels 0, 1, ... 9, 0, ..."""
    return struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))


def write_fashion(folder: Path, *, gzipped: bool = True, **changed: bytes | None) -> Path:
    """Write the four files: 20 pictures to train on, 10 to test on.

    Args:
        folder: where to.
        gzipped: whether to compress them.
        changed: content of a file in place of the right one, by its name with "_"; None: no file.
    """
    content: dict[str, bytes | None] = {
        "train images": images(20),
        "train labels": labels(20),
        "test images": images(10),
        "test labels": labels(10),
    } | {key.replace("_", " "): value for key, value in changed.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in content.items():
        if value is not None and gzipped:
            (folder / f"{NAMES[key]}.gz").write_bytes(gzip.compress(value))
        elif value is not None:
            (folder / NAMES[key]).write_bytes(value)
    return folder
