"""Exceptions. Every message names the call, what was expected, what came, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


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
        super().__init__(f"{call}: {problem}: expected {expected}, got {got!r}{place}. {fix}.")

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


def choose(table: Mapping[str, T], name: Any, *, call: str, option: str) -> T:
    """Return ``table[name]``, or raise an OptionError that lists the names and the closest one."""
    if isinstance(name, str) and name in table:
        return table[name]
    close = get_close_matches(str(name), list(table), n=1)
    raise OptionError(
        call,
        f"unknown {option}",
        expected=" | ".join(repr(key) for key in table),
        got=name,
        fix=f"Did you mean {close[0]!r}" if close else "Choose one of the names listed",
    )
