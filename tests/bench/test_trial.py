"""A trial spends its budget and no more, and ends in a line whatever happens."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seng.apps.bench import QUICK, trial
from seng.apps.bench.protocol import Budget
from seng.apps.bench.tasks import Score
from seng.apps.bench.trial import Outcome, Trial, run_trial, spend
from seng.apps.train.errors import DataError

TRIAL = Trial("digits", "sgd", "steps", "evaluation", 0, 0, {"lr": 0.1}, QUICK)
ROUNDING = 1e-9  # of differences of a clock that is near 1e4


class Clock:
    """CPU seconds of a process that does nothing but what ``Worker`` says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A task whose steps take given seconds and give given losses, the last of each again and again."""

    steps_per_epoch = 7

    def __init__(self, clock: Clock, seconds: list[float], losses: list[float]) -> None:
        self.clock, self.seconds, self.losses = clock, seconds, losses
        self.steps, self.shares = 0, []

    def step(self, share: float) -> float:
        self.shares.append(share)
        self.clock.now += self.seconds[min(self.steps, len(self.seconds) - 1)]
        self.steps += 1
        return self.losses[min(self.steps, len(self.losses)) - 1]

    def evaluate(self) -> Score:
        self.clock.now += 1000.0  # evaluations cost nothing
        return Score(1 / (1 + self.steps), accuracy=0.5)


durations = st.lists(st.floats(0.01, 3.0), min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(durations, st.floats(0.1, 20.0), st.integers(1, 10))
def test_seconds_end_within_the_step_that_overdraws_them(seconds: list[float], amount: float, points: int) -> None:
    clock, outcome = Clock(), Outcome()
    worker = Worker(clock, seconds, [1.0])
    spend(worker, Budget("seconds", amount), points, outcome, clock)
    last = seconds[min(worker.steps, len(seconds)) - 1]
    assert outcome.seconds >= amount * (1 - ROUNDING)
    assert outcome.seconds - last < amount * (1 + ROUNDING)
    assert worker.shares == sorted(worker.shares)
    assert worker.shares[-1] < 1
    assert outcome.curve[-1][0] == outcome.steps == worker.steps  # the last evaluation is that of the end
    assert len(outcome.curve) <= points


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_steps_are_taken_exactly_and_evaluated_evenly(amount: int, points: int) -> None:
    clock, outcome = Clock(), Outcome()
    spend(Worker(clock, [0.1], [1.0]), Budget("steps", amount), points, outcome, clock)
    assert outcome.steps == amount
    assert outcome.curve[-1][0] == amount
    if amount >= points:
        assert len(outcome.curve) == points
        assert all(abs(steps - (k + 1) * amount / points) < 1.5 for k, (steps, *_) in enumerate(outcome.curve))


def test_steps_do_not_depend_on_evaluations() -> None:
    def first_loss(points: int) -> float:
        return run_trial(replace(TRIAL, protocol=replace(QUICK, points=points)))["loss"]

    assert first_loss(1) == first_loss(5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_a_divergence(bad: float) -> None:
    clock, outcome = Clock(), Outcome()
    spend(Worker(clock, [0.1], [1.0, 1.0, bad]), Budget("steps", 10), 5, outcome, clock)
    assert (outcome.ended, outcome.steps) == ("diverged", 3)


def test_end_above_the_beginning_is_a_divergence() -> None:
    class Worse(Worker):
        def evaluate(self) -> Score:
            return Score(1.0 + self.steps)

    clock, outcome = Clock(), Outcome()
    spend(Worse(clock, [0.1], [1.0]), Budget("steps", 4), 2, outcome, clock)
    assert outcome.ended == "diverged"


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (torch.linalg.LinAlgError("not positive definite"), "diverged"),  # type: ignore[attr-defined]
        (OverflowError("too large"), "diverged"),
        (RuntimeError("can't allocate memory"), "failed"),
    ],
)
def test_errors_of_an_optimizer_are_results(monkeypatch: pytest.MonkeyPatch, error: Exception, ended: str) -> None:
    class Broken(Worker):
        def step(self, share: float) -> float:
            raise error

    monkeypatch.setattr(trial, "build_task", lambda *args: Broken(Clock(), [0.1], [1.0]))
    line = run_trial(TRIAL)
    assert line["ended"] == ended
    assert str(error) in line["error"]
    json.dumps(line, allow_nan=False)


def test_absent_data_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object) -> None:
        raise DataError("load", "not here", expected="files", got=None, fix="Get them")

    monkeypatch.setattr(trial, "build_task", absent)
    with pytest.raises(DataError, match="not here"):
        run_trial(TRIAL)


def test_diverging_run_is_a_whole_line() -> None:
    line = run_trial(replace(TRIAL, values={"lr": 1e20}))
    assert line["ended"] == "diverged"
    json.dumps(line, allow_nan=False)
    assert line["environment"]["threads"] >= 1


def test_equal_trials_are_equal_runs_and_other_seeds_others() -> None:
    losses = [run_trial(replace(TRIAL, seed=seed))["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"values": {"lr": 0.2}}, {"budget": "seconds"}, {"stage": "tuning"}, {"optimizer": "adamw"},
     {"protocol": replace(QUICK, points=3)}],
    ids=str,
)  # fmt: skip
def test_identity_tells_trials_apart(change: dict[str, object]) -> None:
    assert replace(TRIAL, **change).identity() != TRIAL.identity()  # type: ignore[arg-type]
    assert replace(TRIAL).identity() == TRIAL.identity()


@pytest.mark.parametrize("optimizer", ["seng", "sgd", "muon"])
def test_scientific_problem_is_solved_better_than_it_began(optimizer: str) -> None:
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch without Muon")
    values = {"damping": 0.1} if optimizer == "seng" else {"lr": {"sgd": 1e-4, "muon": 0.01}[optimizer]}
    protocol = replace(QUICK, share=0.01)
    line = run_trial(Trial("poisson-2d", optimizer, "steps", "evaluation", 0, 0, values, protocol))
    assert (line["ended"], line["steps"]) == ("budget", 6)
