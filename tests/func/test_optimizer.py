"""Whole runs: they solve problems, keep the last good parameters, and resume bit for bit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seng.errors import BatchError, OptionError, StateError
from seng.func import NaturalGradient, NotFiniteError, StepResult, laplacian, natural_gradient
from seng.func.config import Settings
from seng.func.direction import Directions
from seng.func.optimizer import BENT
from seng.func.problem import Path, problem_of
from seng.func.rows import Rows
from seng.func.trees import params_of

from .reference import DTYPE, dense, draw, flat, network

SAME = 1e-12  # the same operations, summed alike
SHORT = 0.01  # of a full step: terms of fifth order are then small beside those of fourth


def curve(w: Tensor, x: Tensor) -> Tensor:
    return w[0] * torch.exp(w[1] * x) - 2 * torch.exp(-3 * x)


START, X = torch.tensor([1.0, 0.0], dtype=DTYPE), torch.linspace(0, 1, 20, dtype=DTYPE)


def poisson(u: Any, x: Tensor) -> Tensor:
    return laplacian(u, x) + 2 * math.pi**2 * torch.sin(math.pi * x).prod()


def run(steps: int, start: Tensor = START, **options: Any) -> tuple[Tensor, NaturalGradient, list[StepResult]]:
    w = start.clone()
    optimizer = NaturalGradient(w, curve, **options)
    return w, optimizer, [optimizer.step(X) for _ in range(steps)]


@pytest.mark.parametrize("line_search", ["grid", "backtracking", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_run_fits_a_curve(line_search: str, momentum: float) -> None:
    w, optimizer, results = run(60, line_search=line_search, momentum=momentum)
    assert torch.allclose(w, torch.tensor([2.0, -3.0], dtype=DTYPE), atol=1e-6)
    losses = [result.loss for result in results]
    assert all(after <= before for before, after in pairwise(losses))
    assert optimizer.steps == 60
    assert sum(optimizer.counters[event] for event in ("accepted", "rejected", "skipped", "unsolved")) == 60


def test_run_solves_a_boundary_value_problem() -> None:
    net = network(width=12)
    points = {"inside": draw(60, 2), "edge": draw(40, 2, seed=1)}
    points["edge"][torch.arange(40), torch.arange(40) % 2] = (torch.arange(40) % 4 // 2).to(DTYPE)
    optimizer = NaturalGradient(net, {"inside": poisson, "edge": lambda u, x: u(x)}, weights={"edge": 10.0})
    for _ in range(80):
        optimizer.step(points)
    x = draw(200, 2, seed=2)
    solution = torch.sin(math.pi * x).prod(1)
    with torch.no_grad():
        error = (net(x)[:, 0] - solution).norm() / solution.norm()
    assert error < 0.02  # gradient descent stays near 1 at this size and count


def test_results_say_what_happened() -> None:
    _, _, results = run(3)
    for k, (result, following) in enumerate(pairwise(results)):
        assert result.step == k
        assert result.accepted
        assert result.loss_after == pytest.approx(following.loss, rel=SAME)
        info = result.info
        assert info is not None
        assert result.gain_ratio is not None
        promised = result.length * info.slope - result.length**2 * info.curvature / 2
        assert result.gain_ratio == pytest.approx((result.loss - result.loss_after) / promised, rel=SAME)


def test_straight_step_follows_the_pure_function() -> None:
    w, optimizer, (result,) = run(1, damping=0.2, acceleration=False, line_search="grid", scaling=False)
    d, info = natural_gradient(curve, START, X, damping=0.2)
    torch.testing.assert_close(w, START - result.length * d, rtol=SAME, atol=SAME)
    assert result.info == info
    assert optimizer.params is w


def test_momentum_keeps_the_last_step() -> None:
    w, _, _ = run(2, momentum=0.6, lr=0.5, damping_rule="constant", acceleration=False, scaling=False)
    first, _ = natural_gradient(curve, START, X)
    after = START - 0.5 * first
    second, _ = natural_gradient(curve, after, X, momentum=0.6, previous=0.5 * first)
    torch.testing.assert_close(w, after - 0.5 * second, rtol=SAME, atol=SAME)


def bilinear(w: Tensor, x: Tensor) -> Tensor:
    return w[0] * w[1] * x + w[0].square() * x.square() - 2 * x - w[1]


@pytest.mark.parametrize("solver", ["exact", "gaussian"])
def test_first_correction_is_the_second_derivative_of_the_residuals(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residuals of second order, which the linear model misses by half of that."""
    monkeypatch.setattr("seng.func.direction.CORRECTIONS", 1)
    w = START.clone()
    problem = problem_of(bilinear, params_of(w, "test"), X, Settings(solver=solver, rank=9), 0, "test")
    directions = Directions(problem, problem.losses((w,)))
    d, info = directions.at(0.3, None)
    b = directions.bend(d, 0.5)
    second = 2 * (d[0] * d[1] * X + d[0].square() * X.square()) / len(X) ** 0.5
    reference = dense({"r": lambda x: bilinear(leaf, x)}, {"r": X}, [leaf := w.clone().requires_grad_()])
    if solver == "exact":
        expected = torch.linalg.solve(
            reference.j.mT @ reference.j + info.damping * torch.eye(2, dtype=DTYPE), reference.j.mT @ second / 2
        )
        torch.testing.assert_close(b, expected, rtol=1e-8, atol=1e-8)
    else:  # the sketched system for another right side
        c = directions._damped(0.3).solve(second)
        torch.testing.assert_close(b, reference.j.mT @ c / 2, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("length", [1.0, 0.5])
def test_residuals_of_a_path_follow_the_linear_model_to_fourth_order(length: float) -> None:
    off = []
    for size in (SHORT, SHORT / 2):
        problem = problem_of(bilinear, params_of(START, "test"), X[:2], Settings(), 0, "test")
        directions = Directions(problem, problem.losses((START,)))
        d = size * directions.at(1e-12, None)[0]
        there = problem.residuals(Path(d, directions.bend(d, length)).at(length, problem.params))
        off.append(float((there - (1 - size * length) * problem.residuals((START,))).norm()))
    assert off[1] < off[0] / 12  # 16 where there is nothing beyond fourth order


def test_failed_damping_is_raised_within_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    write = Rows._write
    monkeypatch.setattr(Rows, "_write", lambda self, *rest: made.append(1) or write(self, *rest))
    w = torch.tensor([0.5], dtype=DTYPE)
    optimizer = NaturalGradient(w, lambda w, x: torch.atan(5 * w) * x, damping=0.1, acceleration=False)
    result = optimizer.step(X)
    assert result.accepted
    assert result.attempts > 1
    assert result.damping == pytest.approx(0.1 * 4 ** (result.attempts - 1))
    assert len(made) == 1  # rows are not made again
    assert result.loss_after < result.loss


def valley(w: Tensor, x: Tensor) -> Tensor:
    """Rosenbrock's."""
    return torch.stack([10 * (w[1] - w[0].square()), 1 - w[0]]) * x


def test_path_that_bends_too_much_is_not_taken() -> None:
    w, batch = torch.tensor([-1.2, 1.0], dtype=DTYPE), X[10:11]
    problem = problem_of(valley, params_of(w, "test"), batch, Settings(), 0, "test")
    directions = Directions(problem, problem.losses((w,)))
    bent = []
    result = NaturalGradient(w.clone(), valley, damping=1e-5).step(batch)
    for attempt in range(result.attempts):
        d, _ = directions.at(1e-5 * 4**attempt, None)
        bent.append(2 * float(directions.bend(d, 1.0).norm() / d.norm()))
    assert bent[0] > BENT
    assert bent[-1] <= BENT
    assert result.accepted


@pytest.mark.parametrize("fisher", ["empirical", "gauss_newton"])
def test_only_squared_residuals_bend_paths(fisher: str) -> None:
    optimizer = NaturalGradient(START.clone(), lambda w, x: curve(w, x).square() + 1, fisher=fisher)
    assert optimizer.acceleration == (fisher == "gauss_newton")
    assert optimizer.step(X).accepted


def test_acceleration_needs_fewer_steps() -> None:
    """A curved valley, where straight steps must be short."""
    counts = []
    for acceleration in (True, False):
        w = torch.tensor([-1.2, 1.0], dtype=DTYPE)
        optimizer = NaturalGradient(w, valley, acceleration=acceleration, damping=1e-3)
        while optimizer.steps < 200 and optimizer.step(X[10:11]).loss > 1e-20:
            pass
        counts.append(optimizer.steps)
    assert counts[0] < counts[1] < 200


def test_none_with_constant_damping_takes_every_finite_step() -> None:
    w = torch.tensor([0.1], dtype=DTYPE)
    optimizer = NaturalGradient(
        w, lambda w, x: torch.atan(5 * w) * x, line_search="none", damping_rule="constant", damping=1e-9, lr=30.0
    )
    result = optimizer.step(X)
    assert result.accepted
    assert result.loss_after > result.loss


@pytest.mark.parametrize("line_search", ["grid", "backtracking", "none"])
def test_uphill_step_is_rejected_and_damping_rises(line_search: str) -> None:
    w = torch.tensor([0.1], dtype=DTYPE)
    optimizer = NaturalGradient(w, lambda w, x: torch.atan(5 * w) * x, line_search=line_search, lr=1e9)
    result = optimizer.step(X)
    if line_search == "backtracking":  # 20 halvings are not enough from there
        assert result.reason == "no step length lowers the loss"
    assert not result.accepted
    assert result.gain_ratio is None
    assert result.loss_after == result.loss
    assert optimizer.damping > 0.1
    assert torch.equal(w, torch.tensor([0.1], dtype=DTYPE))
    assert optimizer.counters["rejected"] == 1


def test_steps_that_are_too_long_are_followed_by_good_ones() -> None:
    w, optimizer, results = run(80, line_search="none", lr=8.0)
    assert max(result.attempts for result in results) > 1
    assert optimizer.counters["accepted"] > 0
    assert float(curve(w, X).square().mean()) < float(curve(START, X).square().mean())


def test_batch_that_is_not_finite_is_skipped() -> None:
    w, optimizer, _ = run(2)
    before, damping = w.clone(), optimizer.damping
    bad = X.clone()
    bad[3] = math.nan
    with pytest.warns(UserWarning, match=r"step skipped, parameters kept: .*\{'residual': 1\}"):
        result = optimizer.step(bad)
    assert not result.accepted
    assert result.info is None
    assert torch.equal(w, before)
    assert optimizer.damping == damping
    assert optimizer.counters["skipped"] == 1
    assert optimizer.step(X).accepted


def test_unsolvable_step_keeps_the_parameters() -> None:
    w = draw(2)
    optimizer = NaturalGradient(w, lambda w, x: x + 0 * w[0])
    before = w.clone()
    with pytest.warns(UserWarning, match="step unsolved, parameters kept: .*no output depends on a parameter"):
        result = optimizer.step(X)
    assert optimizer.damping == 0.1
    assert not result.accepted
    assert optimizer.counters["unsolved"] == 1
    assert torch.equal(w, before)


def test_structural_faults_are_raised() -> None:
    w = draw(2)
    optimizer = NaturalGradient(w, lambda w, x: x.long())
    with pytest.raises(BatchError, match=r"step\(\): function of 'residual' cannot be used"):
        optimizer.step(X)
    assert optimizer.steps == 0


@pytest.mark.parametrize("kind", ["tensor", "dict", "module"])
def test_parameters_are_updated_in_place(kind: str) -> None:
    net = nn.Linear(1, 1).double()
    params: Any = {"tensor": draw(2), "dict": {"a": draw(1), "b": [draw(1, seed=1)]}, "module": net}[kind]
    functions: dict[str, Any] = {
        "tensor": lambda w, x: w[0] * x + w[1] - 3 * x,
        "dict": lambda q, x: q["a"] * x + q["b"][0] - 3 * x,
        "module": lambda net, x: net(x[None]) - 3 * x,
    }
    leaves = [params] if kind == "tensor" else [params["a"], params["b"][0]] if kind == "dict" else [*net.parameters()]
    pointers = [leaf.data_ptr() for leaf in leaves]
    optimizer = NaturalGradient(params, functions[kind])
    for _ in range(10):
        optimizer.step(X)
    assert [leaf.data_ptr() for leaf in leaves] == pointers
    torch.testing.assert_close(flat(leaves), torch.tensor([3.0, 0.0], dtype=DTYPE), rtol=0, atol=1e-6)


def test_damping_follows_a_schedule() -> None:
    _, _, results = run(3, damping=lambda step: 0.5 / (step + 1), damping_rule="constant")
    assert [result.damping for result in results] == [0.5, 0.25, 0.5 / 3]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"solver": "gaussian", "rank": 7, "seed": 3}])
def test_run_resumes_bit_for_bit(options: dict[str, Any], tmp_path: Any) -> None:
    whole, _, results = run(8, **options)
    half, optimizer, _ = run(4, **options)
    torch.save({"w": half, "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    w = saved["w"]
    resumed = NaturalGradient(w, curve, **{**options, "seed": 99})
    resumed.load_state_dict(saved["optimizer"])
    assert [resumed.step(X) for _ in range(4)] == results[4:]
    assert torch.equal(w, whole)
    assert resumed.counters["accepted"] + resumed.counters["rejected"] == 8


def test_state_is_a_copy() -> None:
    _, optimizer, _ = run(2, momentum=0.5)
    state = optimizer.state_dict()
    before = state["previous"].clone()
    optimizer.step(X)
    assert torch.equal(state["previous"], before)
    optimizer.load_state_dict(state)
    optimizer.step(X)
    assert torch.equal(state["previous"], before)
    assert state["counters"]["accepted"] == 2


def _changed(**changes: Any) -> Any:
    return lambda state: {**state, **changes}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda state: [], "not a whole state"),
        (lambda state: {key: value for key, value in state.items() if key != "step"}, "not a whole state"),
        (_changed(more=1), "not a whole state"),
        (_changed(version=99), "another version: expected 1, got 99"),
        (_changed(layout={"": [3]}), "a state of other parameters"),
        (_changed(step=-1), "step cannot be read"),
        (_changed(seed=True), "seed cannot be read"),
        (_changed(damping=math.nan), "damping cannot be read"),
        (_changed(damping=0.0), "damping cannot be read"),
        (_changed(counters={"accepted": 1}), "counters cannot be read"),
        (_changed(largest=torch.zeros(3, dtype=DTYPE)), "norms cannot be read"),
        (_changed(stuck=(1.0, math.nan)), "loss of a batch cannot be read"),
        (_changed(previous=torch.zeros(3, dtype=DTYPE)), "last direction cannot be read"),
        (_changed(previous=torch.zeros(2)), "last direction cannot be read"),
        (_changed(previous=torch.full((2,), math.nan, dtype=DTYPE)), "last direction cannot be read"),
    ],
)
def test_bad_state_is_refused_and_changes_nothing(spoil: Any, problem: str) -> None:
    _, optimizer, _ = run(2, momentum=0.5)
    state = optimizer.state_dict()
    with pytest.raises(StateError, match=problem):
        optimizer.load_state_dict(spoil(state))
    after = optimizer.state_dict()
    for name in ("previous", "largest"):
        assert torch.equal(after.pop(name), state.pop(name))
    assert after == state


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"lr": 0.0}, "lr out of range: expected a number > 0"),
        ({"lr": 10**400}, "lr out of range: expected a number > 0"),
        ({"weights": {"residual": 10**400}}, "weights out of range"),
        ({"seed": 2**63}, "seed out of range: expected an integer >= 0, below 2"),
        ({"solve_dtype": np.ones(3)}, "solve_dtype out of range"),
        (
            {"damping": lambda step: 1 / step, "damping_rule": "constant"},
            "damping schedule failed",
        ),
        ({"momentum": 1.0}, "momentum out of range: expected a number >= 0 and < 1"),
        ({"acceleration": 1}, "acceleration out of range: expected True or False"),
        ({"damping": 0.0}, "damping out of range: expected a number > 0"),
        ({"damping": lambda step: -1.0, "damping_rule": "constant"}, "damping out of range"),
        ({"damping": lambda step: 0.1}, "damping has two masters"),
        ({"damping_rule": "levenberg"}, "unknown damping_rule.*Did you mean 'levenberg_marquardt'"),
        ({"line_search": "gird"}, "unknown line_search.*Did you mean 'grid'"),
        ({"fisher": "gauss"}, "unknown fisher"),
        ({"solver": "nystroem"}, "unknown solver.*Did you mean 'nystrom'"),
        ({"damping_mode": 1}, "unknown damping_mode"),
        ({"distributed": "all"}, "unknown distributed"),
        ({"rank": 0}, "rank out of range: expected an integer >= 1"),
        ({"rank": True}, "rank out of range"),
        ({"iterations": -1}, "iterations out of range"),
        ({"tolerance": 0.0}, "tolerance out of range"),
        ({"memory": 1.5}, "memory out of range"),
        ({"seed": -1}, "seed out of range"),
        ({"per_sample": 1}, "per_sample out of range"),
        ({"row_dtype": torch.float16}, "row_dtype out of range"),
        ({"solve_dtype": None}, "solve_dtype out of range"),
        ({"weights": {"residual": -1.0}}, "weights out of range"),
        ({"weights": [1.0]}, "weights out of range"),
        ({"dampnig_mode": "absolute"}, "unknown option.*Did you mean 'damping_mode'"),
        ({"zzz": 1}, "unknown option.*Remove it"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=rf"NaturalGradient\(\): {problem}"):
        NaturalGradient(START.clone(), curve, **options)


def test_schedule_out_of_range_is_refused_at_its_step() -> None:
    optimizer = NaturalGradient(START.clone(), curve, damping=lambda step: 0.1 - step, damping_rule="constant")
    optimizer.step(X)
    with pytest.raises(OptionError, match=r"step\(\): damping out of range"):
        optimizer.step(X)


@pytest.mark.parametrize(
    ("params", "got"),
    [
        ({}, r"\[\]"),
        (3.0, "float"),
        (torch.arange(3), "torch.int64"),
        ([torch.ones(1), torch.ones(1, dtype=DTYPE)], "float32.*float64"),
        (nn.ReLU(), r"\[\]"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(params: Any, got: str) -> None:
    with pytest.raises(OptionError, match=f"params cannot be used: expected trainable floating tensors.*got.*{got}"):
        NaturalGradient(params, curve)


@pytest.mark.parametrize(
    ("fn", "batch", "problem"),
    [
        (curve, {"a": X, "b": X[:3]}, "batch of 'residual' cannot be used"),
        (curve, torch.tensor(1.0), "batch of 'residual' cannot be used"),
        (curve, X[:0], "batch of 'residual' cannot be used"),
        (curve, (X, "text"), "batch of 'residual' cannot be used"),
        ({"a": curve}, X, r"expected \"?a dict with the keys \['a'\].*got 'Tensor'"),
        ({"a": curve, "b": curve}, {"a": X}, "batch does not fit the terms"),
        (lambda w, x: 1.0, X, "function of 'residual' cannot be used.*got 'float'"),
        (lambda w, x: w[:0], X, r"function of 'residual' cannot be used.*got 'torch.float64 \[0\]'"),
        (lambda w, x: (w, x), X, "function of 'residual' cannot be used.*got 'tuple'"),
    ],
)
def test_batches_that_do_not_fit_are_refused(fn: Any, batch: Any, problem: str) -> None:
    with pytest.raises(BatchError, match=problem):
        natural_gradient(fn, START, batch)


@pytest.mark.parametrize(("fn", "problem"), [(3, "residual_fn cannot be used"), ({}, "residual_fn cannot be used")])
def test_functions_that_are_none_are_refused(fn: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        natural_gradient(fn, START, {} if fn == {} else X)


def test_weights_of_unknown_terms_are_refused() -> None:
    with pytest.raises(OptionError, match=r"weights name no term: expected .*\['residual'\]"):
        natural_gradient(curve, START, X, weights={"boundary": 2.0})


def _noted(weights: dict[str, Any]) -> float:
    return natural_gradient({"a": curve}, START, {"a": X}, weights=weights)[1].loss


def test_weights_may_be_tensors_and_change() -> None:
    assert _noted({"a": torch.tensor(3.0)}) == pytest.approx(3 * _noted({}))
    weights: dict[str, Any] = {"a": torch.tensor([1.0], requires_grad=True)}
    optimizer = NaturalGradient(START.clone(), {"a": curve}, weights=weights)
    before = optimizer.step({"a": X})
    weights["a"] = 2
    assert optimizer.step({"a": X}).loss == pytest.approx(2 * before.loss_after, rel=SAME)
    weights["a"] = math.nan
    with pytest.raises(OptionError, match=r"step\(\): weights out of range"):
        optimizer.step({"a": X})
    assert optimizer.steps == 2


MODELS: dict[str, tuple[Any, list[float], list[float]]] = {  # residual, parameters, start
    "decay": (lambda q, s: q[0] * (1 - torch.exp(-q[1] * s[0])) - s[1], [240.0, 5e-4], [500.0, 1e-4]),
    "rational": (lambda q, s: q[0] * s[0] / (q[1] + s[0]) - s[1], [2.0e2, 6.0e1], [1.5e2, 1.0e2]),
    "growth": (lambda q, s: q[0] / (1 + torch.exp(q[1] - q[2] * s[0])) - s[1], [70.0, 2.6, 0.07], [100.0, 1.0, 0.05]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tree", [False, True])
def test_steps_do_not_depend_on_units(name: str, tree: bool) -> None:
    model, truth, start = MODELS[name]
    x = torch.linspace(10, 90, 15, dtype=DTYPE)
    y = torch.stack([-model(torch.tensor(truth, dtype=DTYPE), (xi, torch.zeros((), dtype=DTYPE))) for xi in x]).neg()
    found = []
    for units in (
        torch.ones(len(start), dtype=DTYPE),
        torch.tensor(start, dtype=DTYPE),
        10.0 ** draw(len(start)) * 1e3,
    ):
        q = torch.tensor(start, dtype=DTYPE) / units
        params: Any = list(q) if tree else q
        flatten = (lambda p: torch.stack(p)) if tree else (lambda p: p)
        optimizer = NaturalGradient(params, lambda p, s: model(flatten(p) * units, s))  # noqa: B023
        for _ in range(8):
            optimizer.step((x, y + 0.01 * torch.sin(x)))
        found.append(flatten(params) * units)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-7, atol=0)


def test_coefficient_beside_a_network_has_a_unit_of_its_own() -> None:
    found = []
    for unit in (1.0, 1e-6):
        net = network(width=8)
        net.register_parameter("rate", nn.Parameter(torch.tensor(0.5 / unit, dtype=DTYPE)))
        optimizer = NaturalGradient(net, lambda u, x: u(x) * (1 + u.rate * unit) - x.prod())  # noqa: B023
        for _ in range(5):
            optimizer.step(draw(30, 2))
        found.append(flat(net.parameters())[1:])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_weights_of_a_network_are_not_scaled_one_by_one() -> None:
    pairs = []
    for scaling in (True, False):
        net = network(width=8)
        optimizer = NaturalGradient(net, poisson, scaling=scaling)
        pairs.append([optimizer.step(draw(30, 2)).loss_after for _ in range(3)])
    assert pairs[0] == pytest.approx(pairs[1], rel=1e-9)


def test_fitted_data_are_reported_and_new_data_start_anew() -> None:
    old, new = 2 * torch.exp(-X), 3 * torch.exp(-2 * X)
    fit: Any = lambda q, s: q[0] * torch.exp(q[1] * s[0]) - s[1]  # noqa: E731
    w = torch.tensor([1.0, 0.0], dtype=DTYPE)
    optimizer = NaturalGradient(w, fit)
    results = [optimizer.step((X, old)) for _ in range(60)]
    assert not results[0].converged
    assert results[-1].converged
    assert optimizer.counters["converged"] > 0
    assert max(result.damping for result in results) < 1e6
    after = [optimizer.step((X, new)).loss_after for _ in range(6)]
    assert after[-1] < 1e-20  # from a damping of 100, where the last data ended, it takes twelve


def test_loss_of_zero_is_converged() -> None:
    w = torch.zeros(2, dtype=DTYPE)
    result = NaturalGradient(w, lambda w, x: w.square().sum() * x).step(X)
    assert result.converged
    assert not result.accepted
    assert result.reason == "the loss is 0"


def test_single_precision_says_that_it_is_at_its_end() -> None:
    w = torch.tensor([1.0, 0.0])
    optimizer = NaturalGradient(w, lambda w, x: curve(w, x) + 0.1 * torch.sin(9 * x))  # whose least loss is not 0
    with pytest.warns(UserWarning, match="within its rounding. float64 goes further"):
        results = [optimizer.step(X.float()) for _ in range(60)]
    assert results[-1].converged
    assert max(result.damping for result in results) < 1e4


def test_run_that_is_stuck_resumes_bit_for_bit() -> None:
    w, optimizer, _ = run(60)
    twin = w.clone()
    resumed = NaturalGradient(twin, curve)
    resumed.load_state_dict(optimizer.state_dict())
    assert optimizer.state_dict()["stuck"] is not None
    for k in range(3):
        assert resumed.step(X + 0.1 * k) == optimizer.step(X + 0.1 * k)


def test_derivative_that_is_not_finite_is_named_with_its_term() -> None:
    terms: Any = {"good": lambda q, x: q[0] - x, "bad": lambda q, x: (q[0] ** 2 + q[1] ** 2).sqrt() - x}
    batch = {"good": X, "bad": X}
    with pytest.raises(NotFiniteError, match="derivatives of 'bad' are not finite"):
        natural_gradient(terms, torch.zeros(2, dtype=DTYPE), batch)
    optimizer = NaturalGradient(torch.zeros(2, dtype=DTYPE), terms)
    with pytest.warns(UserWarning, match="step skipped, parameters kept: .*derivatives of 'bad'"):
        assert not optimizer.step(batch).accepted
    assert optimizer.damping == 0.1


def test_term_whose_rows_are_zero_is_warned_of() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).to(DTYPE)
    terms: Any = {"inside": lambda u, x: laplacian(u, x) - 1, "edge": lambda u, x: u(x)}
    with pytest.warns(UserWarning, match="no output of 'inside' depends on a parameter.*ReLU"):
        natural_gradient(terms, net, {"inside": draw(4, 2), "edge": draw(4, 2)})


def test_unit_of_a_parameter_fades_with_its_column() -> None:
    problem = problem_of(curve, params_of(START.clone(), "test"), X, Settings(), 0, "test")
    norms = Directions(problem, problem.present_losses, torch.zeros(2, dtype=DTYPE)).largest
    assert norms is not None
    before = norms * torch.tensor([8.0, 0.5], dtype=DTYPE)
    after = Directions(problem, problem.present_losses, before).largest
    torch.testing.assert_close(after, norms * torch.tensor([6.0, 1.0], dtype=DTYPE), rtol=SAME, atol=0)


def test_losses_at_the_parameters_come_from_the_outputs() -> None:
    net, batch = network(width=6), {"a": draw(7, 2), "b": draw(5, 2)}
    functions = {"a": lambda u, x: u(x), "b": poisson}
    for fisher in ("gauss_newton", "empirical"):
        settings = Settings(fisher=fisher, weights={"b": 3.0})
        problem = problem_of(functions, params_of(net, "test"), batch, settings, 0, "test")
        torch.testing.assert_close(problem.present_losses, problem.losses(problem.params.values()), rtol=SAME, atol=0)
