"""Events that are counted, and said once."""

from __future__ import annotations

import warnings
from collections import Counter


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
