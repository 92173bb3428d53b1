"""What a fit was asked for, validated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...checks import require
from ...errors import OptionError, choose
from ..config import Settings, require_number
from ..ranks import ranks_for
from .stages import RESAMPLING, Stage, first_size

CALL = "fit()"


@dataclass(frozen=True)
class Plan:
    """The options of ``fit`` that are no functions of the user's.

    Args:
        steps: Most steps, or None.
        seconds: Most seconds, or None.
        target: Residual that is good enough, or None.
        size: Number of points, or "auto".
        most: Largest number of points that is found.
        resample: Steps between draws, or the name of a policy.
        adaptive: Whether residuals choose points.
        draws: Whether points come from a function.
        checkpoint: File to save to, or None.
        checkpoint_every: Steps between two saves.
        clock: Seconds since any moment.
    """

    steps: int | None
    seconds: float | None
    target: float | None
    size: int | str
    most: int
    resample: int | str
    adaptive: bool
    draws: bool
    checkpoint: Path | None
    checkpoint_every: int
    clock: Callable[[], float]

    @property
    def grows(self) -> bool:
        """Whether the number of points is found."""
        return self.draws and self.size == "auto"

    @property
    def resamples(self) -> bool:
        """Whether points are drawn anew where their number does not grow."""
        return self.draws and self.resample != "never"

    def ends(self, stage: Stage) -> bool:
        """Return whether a stage is over."""
        return RESAMPLING[self.resample](stage) if isinstance(self.resample, str) else stage.steps >= self.resample

    def first_size(self, params: int) -> int:
        """Return the number of points of the first draw, for a number of parameters."""
        return self.size if isinstance(self.size, int) else first_size(params, self.most)

    def validate(self) -> None:
        """Raise OptionError at the first option that is out of range, or does not fit the others."""
        whole = {"most": self.most, "checkpoint_every": self.checkpoint_every}
        for name in ("steps", "size", "resample"):
            value = getattr(self, name)
            whole |= {} if isinstance(value, str) or value is None else {name: value}
        for name, value in whole.items():
            good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(CALL, name, value, good, "an integer >= 1")
        for name, value in (("seconds", self.seconds), ("target", self.target)):
            if value is not None:
                require_number(CALL, name, value, low=0.0, open_low=True)
        require(CALL, "size", self.size, isinstance(self.size, int) or self.size == "auto", "an integer >= 1 or 'auto'")
        if isinstance(self.resample, str):
            choose(RESAMPLING, self.resample, call=CALL, option="resample")
        require(CALL, "adaptive", self.adaptive, isinstance(self.adaptive, bool), "True or False")
        require(CALL, "adaptive", self.adaptive, self.draws or not self.adaptive, "False where points are a batch")
        if self.steps is None and self.seconds is None:
            raise OptionError(
                CALL, "nothing ends the run for certain", expected="steps or seconds", got=None,
                fix="Pass one of them",
            )  # fmt: skip


def require_squares_in_one_process(settings: Settings, adaptive: bool) -> None:
    """Raise OptionError unless residuals are squared, in one process, and known by sample where they choose points."""
    require(CALL, "fisher", settings.fisher, settings.fisher == "gauss_newton", "'gauss_newton': residuals are squared")
    require(CALL, "per_sample", settings.per_sample, settings.per_sample or not adaptive, "True with adaptive=True")
    world = ranks_for(settings.distributed, CALL).world
    require(CALL, "number of processes", world, world == 1, "one process")
