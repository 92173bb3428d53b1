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

from .content import damaged, read_content

UNSIGNED_BYTE = 8
LARGEST = 2**31  # of a dimension: beyond it torch cannot even shape an empty tensor


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
    content = read_content(path)
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, rank)):
        expected = f"unsigned bytes in {rank} dimensions (00 00 08 {rank:02x})"
        raise damaged("read_idx", path, "not the IDX file wanted", expected, content[:4].hex(" "))
    shape = struct.unpack(f">{rank}I", content[4:header])
    if len(content) - header != math.prod(shape) or max(shape) >= LARGEST:
        expected = f"{math.prod(shape)} values for shape {shape}"
        raise damaged("read_idx", path, "truncated or wrongly sized", expected, len(content) - header)
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return values[header:].reshape(shape)
