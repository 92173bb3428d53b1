"""What a recipe changes with its optimizer, where that is more than the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from ..train.config import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class Variant:
    """An optimizer with the schedule, the epochs and the batch that go with it."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    epochs: int
    batch_size: int
