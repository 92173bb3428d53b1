"""One trial: what it is known by, and its run to the end of a budget."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from ..train.errors import ConfigError, DataError
from .environment import environment
from .optimizers import Entry
from .protocol import Budget, BudgetKind, Protocol
from .tasks import Score, Task, build_task
from .workloads import WORKLOADS, Workload

Stage = Literal["tuning", "evaluation"]
FAILURES = (ArithmeticError, RuntimeError, MemoryError, ValueError)  # that an optimizer may end in; torch.linalg's too


@dataclass(frozen=True)
class Trial:
    """A run of an optimizer on a workload.

    Args:
        workload: Name of the workload.
        optimizer: Name of the optimizer.
        budget: Kind of the budget.
        stage: "tuning" or "evaluation".
        number: Which of the tuning trials it is, or whose values it has.
        seed: Seed of the run.
        values: The tuned settings.
        protocol: The rules.
    """

    workload: str
    optimizer: str
    budget: BudgetKind
    stage: Stage
    number: int
    seed: int
    values: Mapping[str, float]
    protocol: Protocol

    def identity(self) -> dict[str, Any]:
        """Return what is written of the trial before its result; equal identities are the same run."""
        workload = WORKLOADS[self.workload]
        told = {
            "protocol": self.protocol.name, "workload": self.workload, "budget": self.budget,
            "amount": self.limit().amount, "optimizer": self.optimizer, "stage": self.stage, "number": self.number,
            "seed": self.seed, "values": dict(self.values), "first_order": self.entry().first_order,
            "target_accuracy": workload.accuracy,
        }  # fmt: skip
        return told | {"settings": self._fingerprint(workload)}

    def limit(self) -> Budget:
        """Return the budget."""
        workload = WORKLOADS[self.workload]
        if self.budget == "steps":
            return Budget("steps", max(1, round(workload.steps * self.protocol.share)))
        return Budget("seconds", workload.seconds * self.protocol.share)

    def entry(self) -> Entry:
        """Return the optimizer's entry at this workload."""
        entry = WORKLOADS[self.workload].entry(self.optimizer)
        assert entry is not None
        return entry

    def _fingerprint(self, workload: Workload) -> str:
        """Return a digest of every setting that is not written out, so that a changed table makes other trials."""
        source = workload.source if isinstance(workload.source, str) else asdict(workload.source)
        entry = self.entry()
        every = [source, asdict(entry.config), entry.decays, asdict(self.protocol)]
        return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        ended: "budget"; "diverged": a loss was not finite, or the last was above the first; "failed": with ``error``.
        first: Loss before the first step.
        loss: The last evaluation's.
        accuracy: Its share of right answers, where there are classes.
        steps: Steps done.
        seconds: CPU seconds that they took, evaluations left out.
        steps_per_epoch: Steps in a pass over the data.
        curve: Steps, seconds, loss and accuracy at each evaluation.
        error: Why it failed.
    """

    ended: str = "budget"
    first: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    steps: int = 0
    seconds: float = 0.0
    steps_per_epoch: int = 1
    curve: list[tuple[int, float, float, float | None]] = field(default_factory=list)
    error: str = ""

    def add(self, score: Score) -> None:
        """Take in an evaluation after the steps done so far."""
        self.loss, self.accuracy = score.loss, score.accuracy
        self.curve.append((self.steps, round(self.seconds, 3), score.loss, score.accuracy))


def run_trial(trial: Trial, clock: Callable[[], float] = time.process_time) -> dict[str, Any]:
    """Run a trial and return its line: identity, outcome and environment.

    Torch should have one thread, and the process no other work: its CPU time is what is measured.

    Raises:
        SengError: Data are absent, or settings are wrong: nothing of the optimizer's.
    """
    outcome = Outcome()
    try:
        task = build_task(WORKLOADS[trial.workload], trial.entry(), trial.values, trial.seed, trial.stage == "tuning")
        points = trial.protocol.points if trial.stage == "evaluation" else 1
        spend(task, trial.limit(), points, outcome, clock)
    except (ConfigError, DataError):
        raise
    except FAILURES as error:
        diverged = isinstance(error, ArithmeticError | torch.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage]
        outcome.ended = "diverged" if diverged else "failed"
        outcome.error = f"{type(error).__name__}: {error}"[:300]
    return trial.identity() | _finite(asdict(outcome)) | {"environment": environment()}


def spend(task: Task, budget: Budget, points: int, outcome: Outcome, clock: Callable[[], float]) -> None:
    """Take steps until the budget is spent; the step that overdraws it is the last.

    Args:
        task: What is trained.
        budget: What may be spent; evaluations cost nothing.
        points: Evaluations, evenly over the budget, the last at its end.
        outcome: Takes what happens, also where a step raises.
        clock: CPU seconds of the process so far.
    """
    outcome.first, outcome.steps_per_epoch = task.evaluate().loss, task.steps_per_epoch
    share, seconds, due = 0.0, 0.0, 1
    while share < 1:
        began = clock()
        loss = task.step(share)
        seconds += clock() - began
        outcome.steps, outcome.seconds = outcome.steps + 1, seconds
        share = budget.spent(outcome.steps, seconds)
        if not math.isfinite(loss):
            outcome.ended = "diverged"
            return
        if share >= 1 or share * points >= due:
            outcome.add(task.evaluate())
            due = int(share * points) + 1
    assert outcome.loss is not None
    if not outcome.loss <= outcome.first:
        outcome.ended = "diverged"


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with None for numbers that JSON has no form for."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {name: plain(value) for name, value in values.items()}
