"""One line that shows how a fit is going, written over again and again."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from .records import Record

INTERVAL = 0.2  # seconds between two writes


class ProgressLine:
    """A callback of ``fit`` that writes residuals, points and time on one line; a context manager.

    Args:
        seconds: Time limit, of which the share spent is shown, or None.
        steps: Limit of steps, of which the share taken is shown, or None.
        file: Where to write; standard error where None.
    """

    def __init__(self, seconds: float | None, steps: int | None, file: TextIO | None = None):
        self._seconds, self._steps, self._file = seconds, steps, file or sys.stderr
        self._written, self._width, self._held_out = -INTERVAL, 0, ""

    def __call__(self, record: Record) -> None:
        if record.held_out is not None:
            self._held_out = f"  held out {record.held_out:.2e}"
        now = time.monotonic()
        if now - self._written >= INTERVAL:
            self._written = now
            self._write(record)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            self._file.write("\n")

    def _write(self, record: Record) -> None:
        shares = [record.seconds / self._seconds] if self._seconds else []
        shares += [record.step / self._steps] if self._steps else []
        share = f"{min(1.0, max(shares)):4.0%}  " if shares else ""
        text = (
            f"{share}step {record.step}  residual {record.residual:.2e}{self._held_out}"
            f"  points {record.points}  {record.seconds:.0f} s"
        )
        self._file.write("\r" + text.ljust(self._width))
        self._file.flush()
        self._width = len(text)
