"""Events that are counted, and said once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

NAMED = 3  # names, and reasons, that a warning shows


class Events:
    """Counts by name; the first of a kind is a warning.

    Attributes:
        counts: How often each event happened.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, event: str, message: str = "", often: int = 1) -> None:
        """Count an event; ``message`` is what to say the first time, "" for nothing."""
        self.counts[event] += often
        if message and self.counts[event] == often:
            self.warn(f"{message}. Counted in `counters`; this is said once")

    def warn(self, message: str) -> None:
        """Say something now."""
        warnings.warn(f"seng: {message}", stacklevel=5)


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:NAMED]) + _more(len(names) - NAMED)


def listed(reasons: Mapping[str, str]) -> str:
    """Return names with their reasons, each reason once; what is beyond a few is counted."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name or "the model")
    shown = [f"{few(own)} ({why})" for why, own in list(names.items())[:NAMED]]
    return "; ".join(shown) + _more(sum(map(len, list(names.values())[NAMED:])))


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
