"""A value of a metric at which a run ends early."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from .errors import ConfigError
from .metrics import EpochRecord

METRICS = ("test_accuracy", "test_accuracy5", "test_loss", "train_accuracy", "train_loss")


@dataclass(frozen=True)
class Target:
    """A metric of ``EpochRecord`` and the value wanted: accuracies from below, losses from above."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``metric=value``, as ``test_accuracy=0.97``.

        Raises:
            ConfigError: no such metric, or a value that it cannot have.
        """
        metric, _, value = text.replace(" ", "").partition("=")
        try:
            target = cls(metric, float(value))
        except ValueError:
            target = cls(metric, float("nan"))
        highest = 1.0 if target.of_accuracy else float("inf")
        if metric not in METRICS or not isfinite(target.value) or not 0 <= target.value <= highest:
            raise ConfigError(
                "RunConfig",
                "until is out of range",
                expected=f"{' or '.join(METRICS)}, then = and a number (at most 1 for an accuracy)",
                got=text,
                fix="Write test_accuracy=0.97, say",
            )
        return target

    @property
    def of_accuracy(self) -> bool:
        """Whether more is better."""
        return "accuracy" in self.metric

    def reached(self, record: EpochRecord) -> bool:
        """Return whether an epoch's record is at the value or beyond; False where it lacks the metric."""
        value = getattr(record, self.metric)
        if value is None:
            return False
        return value >= self.value if self.of_accuracy else value <= self.value
