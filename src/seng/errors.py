"""Exceptions. Every message names the call, what was expected, what came, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 1500  # characters of a value in a message
DEEPEST = 20  # levels of containers in it
BRACKETS: dict[type, str] = {dict: "{}", list: "[]", tuple: "()", set: "{}", frozenset: "{}"}


class SengError(ValueError):
    """Root of all errors raised by the library.

    Args:
        call: Public call in which the problem appeared, for example ``"SENG()"``.
        problem: What is wrong, in a few words.
        expected: What would have been accepted.
        got: The offending value.
        layer: Qualified name of the layer, where one is at fault.
        fix: What to do about it, an imperative sentence without its full stop.
    """

    def __init__(self, call: str, problem: str, *, expected: str, got: object, fix: str, layer: str | None = None):
        self.call, self.problem, self.expected, self.got = call, problem, expected, got
        self.layer, self.fix = layer, fix
        place = f" at layer {layer}" if layer is not None else ""
        super().__init__(f"{call}: {problem}: expected {expected}, got {shown(got)}{place}. {fix}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let worker processes hand the error on: pickle would call the class with the message alone."""
        keywords = {"expected": self.expected, "got": self.got, "layer": self.layer, "fix": self.fix}
        return partial(type(self), self.call, self.problem, **keywords), ()


class OptionError(SengError):
    """An option is unknown, of the wrong type or out of range."""


class ModelError(SengError):
    """The model has nothing that can be preconditioned."""


class CaptureError(SengError):
    """What the hooks captured does not fit together, or was changed before it could be used."""


class BatchError(SengError):
    """The batch is too small, or differs between capture and step."""


class OrderError(SengError):
    """Calls came in an order that cannot work, such as step() before backward()."""


class MemoryBudgetError(SengError):
    """No plan fits the memory budget."""


class RankError(SengError):
    """Ranks do not fit together: one has failed, is gone or too slow, or has other options than the rest."""


class StateError(SengError):
    """A state dict is truncated, foreign, of another version or of another model."""


def shown(value: object, longest: int = LONGEST) -> str:
    """Return ``repr(value)``, cut where it grows too long or too deep.

    What came from a file may hold itself many times over: its whole repr could take forever.
    """
    text = ""
    for piece in _pieces(value, longest, 0):
        text += piece
        if len(text) > longest:
            return f"{text[:longest]}..."
    return text


def _pieces(value: Any, longest: int, depth: int) -> Iterator[str]:
    kind = dict if isinstance(value, dict) else type(value)
    if kind not in BRACKETS:
        yield _leaf(value, longest)
    elif depth >= DEEPEST:
        yield "..."
    else:
        yield BRACKETS[kind][0]
        for k, item in enumerate(value.items() if kind is dict else value):
            yield ", " if k else ""
            for place, part in enumerate(item if kind is dict else (item,)):
                yield ": " if place else ""
                yield from _pieces(part, longest, depth + 1)
        yield ",)" if kind is tuple and len(value) == 1 else BRACKETS[kind][1]


def _leaf(value: Any, longest: int) -> str:
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST:
        return f"<a whole number of {value.bit_length()} bits>"
    try:
        return repr(value[: longest + 1] if isinstance(value, str | bytes) else value)
    except Exception:  # an object may refuse
        return f"<{type(value).__name__}>"


def choose(table: Mapping[str, T], name: Any, *, call: str, option: str) -> T:
    """Return ``table[name]``, or raise an OptionError that lists the names and the closest one."""
    if isinstance(name, str) and name in table:
        return table[name]
    close = get_close_matches(name[:80] if isinstance(name, str) else "", list(table), n=1)
    raise OptionError(
        call,
        f"unknown {option}",
        expected=" | ".join(repr(key) for key in table),
        got=name,
        fix=f"Did you mean {close[0]!r}" if close else "Choose one of the names listed",
    )
