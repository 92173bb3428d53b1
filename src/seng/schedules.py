"""Schedules: of damping, of refreshes, and the paper's learning-rate law.

A schedule is any callable of the step (0, 1, 2, ...). Plain numbers are constant schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checks import plain, require
from .errors import OptionError

Number = TypeVar("Number", int, float)
Schedule = Number | Callable[[int], Number]


def value_at(schedule: Schedule[Number], step: int) -> Number:
    """Return the schedule's value at a step."""
    return schedule(step) if callable(schedule) else schedule


def scheduled(call: str, name: str, schedule: Any, step: int) -> Any:
    """Return a schedule's value at a step, numbers of other libraries as Python's.

    Raises:
        OptionError: The schedule failed.
    """
    try:
        return plain(value_at(schedule, step))
    except Exception as error:
        raise OptionError(
            call, f"{name} schedule failed", expected="a value at every step", got=type(error).__name__,
            fix=f"Correct the schedule at step {step}: {error}",
        ) from error  # fmt: skip


@dataclass(frozen=True)
class Exponential:
    """Multiply by ``rate`` every ``every`` steps: ``initial * rate ** (step / every)``.

    The paper's damping for ResNet-50 is ``Exponential(0.17, 0.9, every=10 * steps_per_epoch)``.

    Args:
        initial: Value at step 0, > 0.
        rate: Factor per interval, > 0.
        every: Steps per interval, >= 1.
        floor: The value never goes below this, >= 0.

    Example:
        >>> Exponential(1.0, 0.5, every=10)(20)
        0.25
    """

    initial: float
    rate: float
    every: int = 1
    floor: float = 0.0

    def __post_init__(self) -> None:
        good = self.initial > 0 and self.rate > 0 and self.every >= 1 and self.floor >= 0
        require(
            "Exponential()",
            "argument",
            self,
            good,
            "initial > 0, rate > 0, every >= 1, floor >= 0",
            "Pass values in range",
        )

    def __call__(self, step: int) -> float:
        return max(self.floor, self.initial * self.rate ** (step / self.every))


@dataclass(frozen=True)
class DenseThenSparse:
    """Refresh interval that is short early, when curvature changes fast, and long later.

    Args:
        dense: Interval during the first ``until`` steps, >= 1.
        sparse: Interval afterwards, >= 1.
        until: Number of steps with the dense interval, >= 0.

    Example:
        >>> every = DenseThenSparse(dense=1, sparse=10, until=30)
        >>> every(0), every(29), every(30)
        (1, 1, 10)
    """

    dense: int = 1
    sparse: int = 10
    until: int = 30

    def __post_init__(self) -> None:
        good = self.dense >= 1 and self.sparse >= 1 and self.until >= 0
        require(
            "DenseThenSparse()", "argument", self, good, "dense >= 1, sparse >= 1, until >= 0", "Pass values in range"
        )

    def __call__(self, step: int) -> int:
        return self.dense if step < self.until else self.sparse


class PolynomialLR(LRScheduler):
    """The paper's learning rate: ``lr_t = lr_0 * (1 - t / T) ** power``, zero from step T on.

    Args:
        optimizer: Optimizer whose groups are scaled.
        total_steps: T, >= 1, in whatever unit ``step()`` is called (steps or epochs).
        power: Exponent, > 0; the paper uses 6 with T a little beyond the end of training.
        last_epoch: Index of the last step, -1 to begin.

    Source: PAPER section 7 (published settings).
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, power: float = 6.0, last_epoch: int = -1):
        good, got = total_steps >= 1 and power > 0, (total_steps, power)
        require("PolynomialLR()", "argument", got, good, "total_steps >= 1 and power > 0", "Pass values in range")
        self.total_steps, self.power = total_steps, power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        left = max(0.0, 1.0 - self.last_epoch / self.total_steps)
        return [base * left**self.power for base in self.base_lrs]
