"""Checks of numbers that a user passes, with one message for each kind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import inf
from numbers import Integral, Real
from typing import Any

from .errors import OptionError

# range in words: lowest and highest value, and whether a value lies between them
_RANGES: dict[str, tuple[float, float, Callable[[float, float, float], bool]]] = {
    "> 0": (0.0, inf, lambda v, lo, hi: lo < v < hi),
    "in (0, 1]": (0.0, 1.0, lambda v, lo, hi: lo < v <= hi),
    "in [0, 1)": (0.0, 1.0, lambda v, lo, hi: lo <= v < hi),
}


def plain(value: Any) -> Any:
    """Return a number of another library, such as NumPy's, as Python's own, and anything else as it is."""
    if isinstance(value, bool) or type(value) in (int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def is_number(value: object) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    largest = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def is_count(value: object, least: int = 1) -> bool:
    """Return whether a value is an integer of at least ``least`` that 64 bits can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def require(call: str, name: str, value: object, good: bool, expected: str, fix: str | None = None) -> None:
    """Raise OptionError unless a value is good."""
    if not good:
        raise OptionError(
            call, f"{name} out of range", expected=expected, got=value, fix=fix or f"Pass {name} in range"
        )


def require_number(call: str, name: str, value: Any, within: str, optional: bool = False) -> None:
    """Raise OptionError unless a value is a number in a range given in words: "> 0", "in (0, 1]" or "in [0, 1)"."""
    low, high, inside = _RANGES[within]
    good = (optional and value is None) or (is_number(value) and inside(value, low, high))
    require(call, name, value, good, f"a number {within}{' or None' if optional else ''}")


def require_count(call: str, name: str, value: Any, least: int = 1, optional: bool = False) -> None:
    """Raise OptionError unless a value is an integer of at least ``least``."""
    good = (optional and value is None) or is_count(value, least)
    require(call, name, value, good, f"an integer >= {least}, below 2^63")
