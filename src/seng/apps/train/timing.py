"""Where the time of a step goes, and how much has gone by."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_IMPORTED = time.perf_counter()


class Stopwatch:
    """Counts seconds from ``before`` on, without those spent in ``paused``."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._began = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens in the context."""
        held = self.seconds
        try:
            yield
        finally:
            self._before, self._began = held, time.perf_counter()


class StepClock:
    """Sums the seconds of a step's parts over several steps.

    On a GPU a part is the time between two events in its queue, read at ``means`` only, so no step waits for the
    device. "data" is always the time that the loop itself waited.

    Args:
        device: where the model runs.
        now: the clock of a CPU; None: that of the wall.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] | None = None) -> None:
        self._events = device.type == "cuda"
        self._now = now or time.perf_counter
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._pairs: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens in the context; parts may lie within others and then count in both."""
        if self._events:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._pairs.append((name, begin, end))
        else:
            began = self._now()
            yield
            self._sums[name] += self._now() - began

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, counting the time until each is there as "data"."""
        began = self._now()
        for batch in batches:
            self._sums["data"] += self._now() - began
            yield batch
            began = self._now()

    def means(self, steps: int) -> dict[str, float]:
        """Return the seconds of each part a step and start anew. Waits for the device."""
        if self._pairs:
            self._pairs[-1][2].synchronize()
        for name, begin, end in self._pairs:
            self._sums[name] += begin.elapsed_time(end) / 1000  # milliseconds
        means = {name: seconds / steps for name, seconds in self._sums.items()}
        self._reset()
        return means


def process_age() -> float:
    """Return the seconds since this process started (since its first import of this module, outside Linux)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _IMPORTED
