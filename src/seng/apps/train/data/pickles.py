"""Arrays and plain containers out of pickles that strangers wrote, and nothing else.

A pickle is a program that may call whatever it names. Here it can name three things, those that numpy writes for an
array, and each stands for something harmless of ours: no code of numpy or of anybody else runs while it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ....errors import shown
from ....pickles import BoundedReader, Refused, reason
from ..errors import DataError
from .content import damaged


class PickledArray:
    """An array of bytes, made empty as numpy makes it and filled from the state that numpy pickles."""

    values = np.zeros(0, dtype=np.uint8)

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Take version, shape, type, order and bytes."""
        _, shape, kind, by_columns, raw = state
        if not isinstance(kind, PickledType) or by_columns or not isinstance(raw, (bytes, str)):
            raise ValueError("an array that is not of bytes row by row")
        content = raw.encode("latin1") if isinstance(raw, str) else raw  # a string of Python 2 holds bytes
        if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array whose shape is no whole numbers")
        if len(content) != math.prod(shape):
            raise ValueError(f"an array of shape {shape} with {len(content)} bytes")
        self.values = np.frombuffer(content, dtype=np.uint8).reshape(shape)


class PickledType:
    """The one type that arrays may have: unsigned bytes."""

    def __init__(self, name: str, *flags: Any) -> None:
        if name not in ("u1", "uint8"):
            raise ValueError(f"an array of type {shown(name, 80)}, not u1")

    def __setstate__(self, state: Any) -> None:
        """Do nothing: bytes have no order, fields or shape of their own."""


ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): PickledType,
}


def read_pickle(content: bytes, name: str) -> dict[str, Any]:
    """Read a dictionary of arrays of bytes, strings, numbers and plain containers of them.

    Args:
        content: the pickle, of Python 2 (its strings are read as Latin-1, which keeps every byte) or 3.
        name: what to call it in an error.

    Returns:
        The dictionary, its keys as strings and its arrays as ``uint8`` arrays of numpy.

    Raises:
        DataError: the pickle names anything but arrays, which is then not called; or it is damaged.
    """
    try:
        found = BoundedReader(content, ADMITTED, encoding="latin1").load()
    except Refused as refused:
        raise DataError(
            "read_pickle",
            f"{name} asks for what no data need",
            expected="arrays and plain containers",
            got=str(refused),
            fix="Do not load it anywhere, it may run harmful code; fetch the file from its source",
        ) from None
    except Exception as error:  # a damaged program can fail in any way
        problem, expected = "unreadable", "a pickle of arrays and plain containers"
        raise damaged("read_pickle", name, problem, expected, reason(error)) from error
    if not isinstance(found, dict):
        raise damaged("read_pickle", name, "not the pickle wanted", "a dictionary", type(found).__name__)
    return {_text(key): value.values if isinstance(value, PickledArray) else value for key, value in found.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
