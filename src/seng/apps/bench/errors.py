"""What ``seng bench`` refuses; the program shows it without a traceback."""

from __future__ import annotations

from ...errors import SengError


class BenchError(SengError):
    """A file of trials cannot be used, or a worker process is gone."""
