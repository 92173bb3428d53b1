"""Arrays and plain containers out of pickles that strangers wrote, and nothing else.

A pickle is a program that may call whatever it names. Here it can name three things, those that numpy writes for an
array, and each stands for something harmless of ours: no code of numpy or of anybody else runs while it is read.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ....errors import shown
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


class _Refused(Exception):
    """A pickle names something that is not admitted."""


LEFT_OUT = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)  # no data need them


def _with_plain_keys(code: bytes, keys: slice) -> Callable[[Any], None]:
    """Return what fills a dictionary, given where on the stack its keys are."""
    load = pickle._Unpickler.dispatch[code[0]]

    def checked(reader: Any) -> None:
        if not all(isinstance(key, str | bytes | int | float) for key in reader.stack[keys]):
            raise pickle.UnpicklingError("a key that is no text or number")
        load(reader)

    return checked


class _Reader(pickle._Unpickler):  # the one in Python: in C, one wrong byte can make it fill gigabytes with its memo
    """Calls nothing but what is admitted, and takes time and memory as the pickle is long.

    Keys are text and numbers: those of a container that holds itself many times over would be hashed forever. For the
    same reason there are no sets, and no buffers whose size is only claimed.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise _Refused(f"{module}.{name}")
        return ADMITTED[module, name]

    def get_extension(self, code: int) -> Any:
        raise _Refused(f"extension {code}")

    def load_build(self) -> None:
        if isinstance(self.stack[-2], type):  # pyright: ignore[reportAttributeAccessIssue]
            raise pickle.UnpicklingError("attributes for a class of ours")
        super().load_build()  # pyright: ignore[reportAttributeAccessIssue]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in LEFT_OUT},
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: _with_plain_keys(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_plain_keys(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _with_plain_keys(pickle.DICT, slice(0, None, 2)),
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
        found = _Reader(io.BytesIO(content), encoding="latin1").load()
    except _Refused as refused:
        raise DataError(
            "read_pickle",
            f"{name} asks for what no data need",
            expected="arrays and plain containers",
            got=str(refused),
            fix="Do not load it anywhere, it may run harmful code; fetch the file from its source",
        ) from None
    except Exception as error:  # a damaged program can fail in any way
        reason = f"{type(error).__name__}: {error.args[0] if error.args and isinstance(error.args[0], str) else ''}"
        raise damaged("read_pickle", name, "unreadable", "a pickle of arrays and plain containers", reason) from error
    if not isinstance(found, dict):
        raise damaged("read_pickle", name, "not the pickle wanted", "a dictionary", type(found).__name__)
    return {_text(key): value.values if isinstance(value, PickledArray) else value for key, value in found.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
