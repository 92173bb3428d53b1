"""IDX files (the format of MNIST and its relatives), plain or gzipped, read with every byte accounted for.

Layout: two zero bytes, a type byte (8: unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from .content import PIECE, damaged, opened

UNSIGNED_BYTE = 8
LARGEST = 2**30  # values: the pictures of MNIST's largest relative are 547 MB


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
    header = 4 + 4 * rank
    with opened(path) as stream:
        start = stream.read(header)
        if len(start) < header or start[:4] != bytes((0, 0, UNSIGNED_BYTE, rank)):
            expected = f"unsigned bytes in {rank} dimensions (00 00 08 {rank:02x})"
            raise damaged("read_idx", path, "not the IDX file wanted", expected, start[:4].hex(" "))
        shape = struct.unpack(f">{rank}I", start[4:])
        if (count := math.prod(shape)) > LARGEST or max(shape) > LARGEST:
            raise damaged("read_idx", path, "too large", f"at most {LARGEST} values", f"shape {shape}")
        content = bytearray()
        while len(content) <= count and (piece := stream.read(min(PIECE, count + 1 - len(content)))):
            content += piece
    if len(content) != count:
        got = f"more than {count}" if len(content) > count else len(content)
        raise damaged("read_idx", path, "truncated or wrongly sized", f"{count} values for shape {shape}", got)
    return torch.frombuffer(content or bytearray(1), dtype=torch.uint8)[:count].reshape(shape)
