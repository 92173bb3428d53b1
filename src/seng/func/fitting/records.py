"""What a fit leaves behind: a record for each step and a result, as plain values that JSON holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

from ...files import write_atomically


@dataclass(frozen=True)
class Record:
    """A step of a fit.

    Residuals are root mean squares with the weights of the terms, sqrt(sum_t w_t * mean_i(f_ti^2)).

    Args:
        step: Number of steps taken, this one included.
        seconds: Seconds since the fit began, those before a resume included.
        residual: Residual at the points after the step.
        held_out: Residual at the held-out points after the step, or None where it was not computed.
        points: Number of points of the step.
        draws: Number of times that points have been drawn.
        damping: Damping of the step.
        length: Step length, 0 where the parameters did not move.
    """

    step: int
    seconds: float
    residual: float
    held_out: float | None
    points: int
    draws: int
    damping: float
    length: float


@dataclass(frozen=True)
class Fit:
    """The result of a fit; the parameters themselves were changed in place.

    Args:
        reason: Why it ended: "target", "steps", "seconds", "converged", "callback" or "failed".
        residual: Residual at the last points, at the last step.
        held_out: Residual at the held-out points of the parameters that are kept, or None without such points.
        points: Number of points of the last step.
        history: A record for each step.
    """

    reason: str
    residual: float
    held_out: float | None
    points: int
    history: list[Record]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.history[-1].step if self.history else 0

    @property
    def gap(self) -> float | None:
        """Held-out residual over that of the points, at the last step with both: well above 1 means over-fitting."""
        found = next((record for record in reversed(self.history) if record.held_out is not None), None)
        if found is None or found.held_out is None:
            return None
        return found.held_out / found.residual if found.residual else inf

    def save(self, path: str | Path) -> None:
        """Write everything as a JSON file; ``Fit.load`` reads it."""
        text = json.dumps(asdict(self)) + "\n"
        write_atomically(Path(path), lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> Fit:
        """Return what ``save`` wrote."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**{**values, "history": [Record(**record) for record in values["history"]]})
