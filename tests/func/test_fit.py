"""Whole fits: stop rules, points that are drawn and whose number is found, history, and resuming bit for bit."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seng.errors import BatchError, OptionError, StateError
from seng.func import Fit, Record, fit, laplacian
from seng.func.fitting.plan import Plan
from seng.func.fitting.points import CANDIDATES, Source
from seng.func.fitting.progress import ProgressLine
from seng.func.fitting.stages import PATIENCE, PROGRESS, RESAMPLING, Stage
from seng.func.problem import problem_of, settings_of
from seng.func.trees import params_of

from .reference import DTYPE, draw, network

FEW = 12  # points for some 150 parameters: all of them can be fitted exactly


def wave(u: Any, x: Tensor) -> Tensor:
    return u(x) - torch.sin(3 * x).sum(-1, keepdim=True)


def poisson(u: Any, x: Tensor) -> Tensor:
    return laplacian(u, x) + 2 * math.pi**2 * torch.sin(math.pi * x).prod()


def square(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, 2, generator=generator, dtype=DTYPE)


def boundary_value_problem(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    edge = square(max(4, n // 4), generator)
    index = torch.arange(len(edge))
    edge[index, index % 2] = (index % 4 // 2).to(DTYPE)
    return {"inside": square(n - n // 4, generator), "edge": edge}


TERMS: dict[str, Any] = {"inside": poisson, "edge": lambda u, x: u(x)}


def residual_of(net: nn.Module, points: Tensor) -> float:
    with torch.no_grad():
        return float((net(points) - torch.sin(3 * points).sum(-1, keepdim=True)).square().mean().sqrt())


def ticking(interval: float = 1.0) -> Iterator[float]:
    return itertools.count(step=interval)


def test_fit_solves_a_boundary_value_problem() -> None:
    net = network(width=8)
    result = fit(net, TERMS, boundary_value_problem, steps=60, weights={"edge": 10.0}, held_out=100)
    x = draw(200, 2, seed=2)
    solution = torch.sin(math.pi * x).prod(1)
    with torch.no_grad():
        error = (net(x)[:, 0] - solution).norm() / solution.norm()
    assert error < 0.05  # gradient descent stays near 1 at this size and count
    assert result.reason == "steps"
    assert result.steps == len(result.history) == 60


def test_fit_keeps_the_parameters_with_the_least_held_out_residual() -> None:
    net, held = network(width=10), draw(300, 2, seed=5)
    result = fit(net, wave, draw(80, 2), steps=30, held_out=held)
    judged = [record.held_out for record in result.history if record.held_out is not None]
    assert result.held_out == pytest.approx(residual_of(net, held), rel=1e-12)
    assert result.held_out is not None
    assert result.held_out <= min(judged)


def test_over_fitted_points_are_warned_of() -> None:
    net = network(width=10)
    with pytest.warns(UserWarning, match="they are over-fitted. Pass more points"):
        result = fit(net, wave, draw(8, 2), steps=40, held_out=draw(300, 2, seed=5))
    assert result.gap is not None
    assert result.gap > 3


@pytest.mark.parametrize(("options", "reason"), [
    ({"steps": 3}, "steps"),
    ({"seconds": 10.0}, "seconds"),
    ({"steps": 500, "target": 1e-2}, "target"),
    ({"steps": 500, "callbacks": [lambda record: record.step == 4]}, "callback"),
])  # fmt: skip
def test_run_ends_for_the_reason_it_says(options: dict[str, Any], reason: str) -> None:
    clock = ticking()
    result = fit(network(width=8), wave, draw(150, 2), clock=lambda: next(clock), **options)
    last = result.history[-1]
    assert result.reason == reason
    held = {
        "steps": last.step == 3,
        "seconds": last.seconds >= 10 > result.history[-2].seconds,
        "target": last.residual <= 1e-2 < result.history[-2].residual,
        "callback": last.step == 4,
    }
    assert held[reason]


def test_batch_that_no_step_improves_ends_the_run() -> None:
    w = torch.zeros(2, dtype=DTYPE)
    result = fit(w, lambda w, x: w[0] + w[1] * x - 1 - 2 * x, draw(20, 1)[:, 0], steps=500)
    assert result.reason == "converged"
    assert torch.allclose(w, torch.tensor([1.0, 2.0], dtype=DTYPE))


def test_steps_that_are_not_finite_end_the_run() -> None:
    with pytest.warns(UserWarning, match="step skipped"):
        result = fit(torch.zeros(1, dtype=DTYPE), lambda w, x: w / x, torch.zeros(3, dtype=DTYPE), steps=500)
    assert result.reason == "failed"
    assert result.steps < 500


def test_held_out_residual_that_is_not_finite_is_no_progress() -> None:
    w = torch.ones(1, dtype=DTYPE)
    held = torch.tensor([0.0, 1.0], dtype=DTYPE)
    result = fit(w, lambda w, x: (w - 2) / x, 1 + draw(9, 1)[:, 0], steps=10, held_out=held)
    assert result.held_out == math.inf
    assert w.item() == pytest.approx(2)  # the last parameters are kept


def test_number_of_points_grows_until_they_tell_what_is_elsewhere() -> None:
    net = network(width=10)
    result = fit(net, wave, square, steps=150, held_out=200)
    few = network(width=10)
    with pytest.warns(UserWarning, match="over-fitted"):
        fixed = fit(few, wave, square, steps=150, size=FEW, held_out=200, resample="never")
    sizes = [record.points for record in result.history]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert result.held_out is not None
    assert fixed.held_out is not None
    assert result.held_out < fixed.held_out / 10


def test_number_of_points_stays_below_its_bound() -> None:
    result = fit(network(width=10), wave, square, steps=80, most=70, held_out=50)
    assert max(record.points for record in result.history) == 70


@pytest.mark.parametrize("adaptive", [False, True])
def test_points_are_drawn_every_so_many_steps(adaptive: bool) -> None:
    result = fit(network(), wave, square, steps=12, size=80, resample=4, held_out=50, adaptive=adaptive)
    assert [record.draws for record in result.history] == [1] * 4 + [2] * 4 + [3] * 4
    assert {record.points for record in result.history} == {80}


def test_adaptive_points_are_where_residuals_are_large() -> None:
    w = torch.ones(1, dtype=DTYPE)
    layout, settings = params_of(w, "test"), settings_of("test", {})
    x = draw(CANDIDATES * 2000, 1)[:, 0]
    problem = problem_of(lambda w, xi: w * (xi > 0.9).to(xi), layout, x, settings, 0, "test")
    chosen = Source(lambda n, generator: x, 0).choose(1, problem)["residual"]
    assert len(chosen) == 2000
    # (1 + 10) against 1 by point, drawn without replacement from 10% and 90% of them
    assert 0.25 < float((chosen > 0.9).double().mean()) < 0.4


@given(
    st.lists(st.tuples(st.floats(1e-8, 1e8), st.one_of(st.none(), st.floats(1e-8, 1e8))), min_size=1, max_size=60),
    st.floats(1e-6, 1e6),
)
def test_stage_remembers_its_least_residual_and_counts_steps(
    steps: list[tuple[float, float | None]], begun: float
) -> None:
    stage = Stage(begun=begun)
    for residual, held_out in steps:
        stage = stage.after(residual, held_out, False)
    judged = [held_out for _, held_out in steps if held_out is not None]
    assert stage.steps == len(steps)
    assert 0 <= stage.stalled <= stage.steps
    if judged:
        assert min(judged) <= stage.least <= min(judged) / PROGRESS * (1 + 1e-12)
    assert stage.gained == (stage.least < PROGRESS * begun)


@pytest.mark.parametrize(("stage", "ends"), [
    (Stage(steps=50, gap=1.5), set()),
    (Stage(steps=50, gap=2.5), {"auto"}),
    (Stage(steps=5, gap=2.5), set()),
    (Stage(steps=50, stalled=PATIENCE), {"auto", "stall"}),
    (Stage(steps=50, stalled=PATIENCE, gap=2.5), {"auto", "stall", "never"}),
    (Stage(steps=1, converged=True), {"auto", "stall"}),
])  # fmt: skip
def test_policies_end_stages(stage: Stage, ends: set[str]) -> None:
    assert {name for name, policy in RESAMPLING.items() if policy(stage)} == ends


def test_stage_far_above_its_points_had_too_few() -> None:
    stage = Stage(begun=1.0, least=0.5, gap=5.0)
    assert not stage.starved
    assert replace(stage, gap=20.0).starved
    assert replace(stage, least=1.0).starved


@pytest.mark.parametrize("cut", [1, 7])
@pytest.mark.parametrize("options", [{}, {"adaptive": True, "resample": 6}, {"size": 40, "resample": "never"}])
def test_run_resumes_bit_for_bit(cut: int, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"

    def run(net: nn.Module, steps: int, **more: Any) -> Fit:
        clock = ticking()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            return fit(
                net, TERMS, boundary_value_problem, steps=steps, held_out=60, clock=lambda: next(clock),
                **options, **more,
            )  # fmt: skip

    whole, parts = network(), network()
    expected = run(whole, 24)
    run(parts, cut, checkpoint=path)
    again = network(seed=3)
    result = run(again, 24, checkpoint=path, resume=True)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    strip = [replace(record, seconds=0.0) for record in expected.history]
    assert [replace(record, seconds=0.0) for record in result.history] == strip
    assert result.held_out == expected.held_out


def test_run_is_saved_every_so_many_steps(tmp_path: Path) -> None:
    path, net = tmp_path / "fit.pt", network()

    def stop(record: Record) -> None:
        if record.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net, wave, draw(30, 2), steps=20, checkpoint=path, checkpoint_every=3, callbacks=[stop])
    result = fit(net, wave, draw(30, 2), steps=10, checkpoint=path, resume=True)
    whole = network()
    expected = fit(whole, wave, draw(30, 2), steps=10)
    assert [r.residual for r in result.history] == [r.residual for r in expected.history]


@pytest.mark.parametrize(("spoil", "problem"), [
    (lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read"),
    (lambda path: torch.save({"version": 2}, path), "another version"),
    (lambda path: torch.save({"version": 1, "state": {}}, path), "cannot be read"),
    (lambda path: fit(network(width=3), wave, draw(9, 2), steps=1, checkpoint=path), "of other parameters"),
])  # fmt: skip
def test_bad_checkpoint_is_refused_and_changes_nothing(spoil: Any, problem: str, tmp_path: Path) -> None:
    path, net = tmp_path / "fit.pt", network()
    fit(net, wave, draw(30, 2), steps=2, checkpoint=path)
    before = [p.detach().clone() for p in net.parameters()]
    spoil(path)
    with pytest.raises(StateError, match=problem):
        fit(net, wave, draw(30, 2), steps=4, checkpoint=path, resume=True)
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


def test_result_survives_json(tmp_path: Path) -> None:
    result = fit(network(), wave, square, steps=12, held_out=40)
    result.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json") == result
    assert len(json.loads((tmp_path / "fit.json").read_text())["history"]) == 12


def test_progress_is_one_line() -> None:
    file = io.StringIO()
    with ProgressLine(10.0, None, file) as line:
        line(Record(1, 5.0, 1e-3, 2e-3, 40, 1, 0.1, 1.0))
    text = file.getvalue()
    assert text.startswith("\r")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert all(part in text for part in ("50%", "step 1", "residual 1.00e-03", "held out 2.00e-03", "points 40"))


@pytest.mark.parametrize(("options", "problem"), [
    ({"steps": 0}, "steps out of range"),
    ({}, "nothing ends the run"),
    ({"seconds": -1.0}, "seconds out of range"),
    ({"steps": 1, "target": 0.0}, "target out of range"),
    ({"steps": 1, "size": 0}, "size out of range"),
    ({"steps": 1, "size": "many"}, "size out of range"),
    ({"steps": 1, "most": True}, "most out of range"),
    ({"steps": 1, "resample": "sometimes"}, "unknown resample"),
    ({"steps": 1, "resample": 0}, "resample out of range"),
    ({"steps": 1, "adaptive": 1}, "adaptive out of range"),
    ({"steps": 1, "held_out": 0}, "held_out out of range"),
    ({"steps": 1, "fisher": "empirical"}, "fisher out of range"),
    ({"steps": 1, "adaptive": True, "per_sample": False}, "per_sample out of range"),
    ({"steps": 1, "damping": -1.0}, "damping out of range"),
    ({"steps": 1, "step": 3}, "unknown option"),
])  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        fit(network(), wave, square, **options)


@pytest.mark.parametrize("options", [{"held_out": 10}, {"adaptive": True}])
def test_what_needs_a_function_is_refused_with_a_batch(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="out of range"):
        fit(network(), wave, draw(10, 2), steps=1, **options)


def test_points_that_do_not_fit_the_terms_are_refused() -> None:
    with pytest.raises(BatchError, match="does not fit the terms"):
        fit(network(), TERMS, draw(10, 2), steps=1)


def test_plan_counts_points_by_parameters() -> None:
    plan = Plan(1, None, None, "auto", 300, "auto", False, True, None, 1, float)
    assert [plan.first_size(p) for p in (10, 1600, 5000)] == [64, 200, 300]
