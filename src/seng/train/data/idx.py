"""IDX files (the format of MNIST and its relatives), plain or gzipped, read with every byte accounted for.

Layout: two zero bytes, a type byte (8: unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..errors import DataError

UNSIGNED_BYTE = 8
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, rank: int) -> UInt8[Tensor, "..."]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file; gzip is recognised by its first bytes, not by its name.
        rank: the number of dimensions it must have.

    Returns:
        A tensor of the shape that the file's header gives.

    Raises:
        DataError: the file is unreadable, truncated, too long, or of another type or rank; it is named.
    """
    content = _content(path)
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, rank)):
        expected = f"unsigned bytes in {rank} dimensions (00 00 08 {rank:02x})"
        raise _corrupt(path, "not the IDX file wanted", expected, content[:4].hex(" "))
    shape = struct.unpack(f">{rank}I", content[4:header])
    if len(content) - header != math.prod(shape):
        expected = f"{math.prod(shape)} values for shape {shape}"
        raise _corrupt(path, "truncated or wrongly sized", expected, len(content) - header)
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return values[header:].reshape(shape)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (OSError, EOFError, zlib.error) as error:
        raise _corrupt(path, "unreadable", "an IDX file, plain or gzipped", str(error)) from error


def _corrupt(path: Path, problem: str, expected: str, got: object) -> DataError:
    fix = "Fetch the file again: it is damaged or another file"
    return DataError("read_idx", f"{path} is {problem}", expected=expected, got=got, fix=fix)
