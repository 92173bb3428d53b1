"""IDX files made here byte for byte: right ones are read, and every kind of damage is named."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.apps.train.data.idx import read_idx
from seng.apps.train.errors import DataError

IMAGES = bytes.fromhex("00000803 00000002 00000002 00000003") + bytes(range(12))
LABELS = bytes.fromhex("00000801 00000003") + bytes((7, 0, 9))


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "some-idx-ubyte"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_read_idx_returns_every_value_in_place(tmp_path: Path, pack):
    images = read_idx(_write(tmp_path, pack(IMAGES)), rank=3)
    assert images.dtype == torch.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert read_idx(_write(tmp_path, pack(LABELS)), rank=1).tolist() == [7, 0, 9]


DAMAGED = {
    "empty": b"",
    "header cut": IMAGES[:10],
    "values cut": IMAGES[:-1],
    "values too many": IMAGES + b"\0",
    "none of the largest": bytes.fromhex("00000803 00000000 ffffffff ffffffff"),
    "another rank": LABELS,
    "floats": b"\0\0\x0d\x03" + IMAGES[4:],
    "not idx": b"P5 2 2 255 " + IMAGES,
    "gzip cut": gzip.compress(IMAGES)[:-9],
    "gzip overwritten": gzip.compress(IMAGES)[:12] + b"\xff" * 20,
    "gzip checksum": gzip.compress(IMAGES)[:-8] + bytes(8),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_read_idx_names_the_damaged_file(tmp_path: Path, content: bytes):
    path = _write(tmp_path, content)
    with pytest.raises(DataError, match="some-idx-ubyte is .*: expected .*, got .*Fetch the file again"):
        read_idx(path, rank=3)


def test_read_idx_names_a_file_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(DataError, match="unreadable.*Is a directory"):
        read_idx(tmp_path, rank=3)


PACKED = gzip.compress(IMAGES, mtime=0)


@given(place=st.integers(0, len(PACKED) - 1), change=st.integers(1, 255))
@settings(deadline=None)  # a busy machine, nothing else
def test_read_idx_finds_every_damage_of_a_gzipped_file(place: int, change: int):
    content = bytearray(PACKED)
    content[place] ^= change
    with TemporaryDirectory() as folder, suppress(DataError):
        assert read_idx(_write(Path(folder), bytes(content)), rank=3).flatten().tolist() == list(range(12))


@given(header=st.binary(min_size=12, max_size=12), count=st.integers(0, 20))
@settings(deadline=None)
def test_read_idx_of_any_header_is_an_array_or_an_error(header: bytes, count: int):
    content = IMAGES[:4] + header + bytes(count)
    with TemporaryDirectory() as folder, suppress(DataError):
        assert read_idx(_write(Path(folder), content), rank=3).numel() == count


@pytest.mark.parametrize("shape", [(2**16, 2**16, 2**16), (2**32 - 1, 1, 1), (2, 2, 3)])
def test_read_idx_takes_memory_as_its_header_says_at_most(tmp_path: Path, shape: tuple[int, ...]):
    """What follows unpacks to 32 MiB, whatever the header says."""
    header = b"\0\0\x08\x03" + struct.pack(">3I", *shape)
    path = _write(tmp_path, gzip.compress(header + bytes(2**25)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"some-idx-ubyte is (too large|truncated or wrongly sized): expected"):
            read_idx(path, rank=3)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
