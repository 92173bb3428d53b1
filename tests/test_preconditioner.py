"""The preconditioner: when curvature is refreshed, with which damping it is used, and what leaves directions alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng import DenseThenSparse, Exponential, PaperCode, Preconditioner, Sketched
from seng.errors import OptionError
from seng.linalg import damped_power
from seng.per_sample import truncated
from seng.testing import dense_direction

from .runs import (
    BLOCKS,
    assert_close,
    backward,
    batch,
    directions,
    flat_gradients,
    perceptron,
    sample_rows,
    snapshot,
)

EXACT = 1e-9  # relative error of a direction in float64
CAP = 1 + 1e-9  # of the trust cap, the same rounding


def dense(rows: dict[str, Tensor], grads: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
    return {name: dense_direction(rows[name], grads[name], **how) for name in BLOCKS}


def plain_gradients(x: Tensor, y: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    model = perceptron()
    backward(model, x, y, scale)
    return flat_gradients(model)


# -- refreshes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 3, 6]),
        (100, [0]),
        (DenseThenSparse(1, 4, until=3), [0, 1, 2, 6]),
        (lambda step: 2 if step % 2 else 3, [0, 3, 5, 7]),
    ],
)
@pytest.mark.parametrize("order", ["previous", "current"])
def test_refreshes_follow_their_schedule(every: Any, expected: list[int], order: str) -> None:
    model = perceptron()
    pre = Preconditioner(model, refresh_every=every, curvature_batch=order)  # type: ignore[arg-type]
    refreshed = []
    for step in range(8):
        directions(model, pre, *batch(step))
        if pre.stats()["0"].refresh_age == 0:
            refreshed.append(step)
    assert refreshed == expected


@pytest.mark.parametrize("order", ["previous", "current"])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_damping_schedule_acts_between_refreshes(order: str, power: float) -> None:
    damping = Exponential(0.5, 0.7)
    model = perceptron()
    for every in (1, 3):
        pre = Preconditioner(
            model,
            damping=damping,
            power=power,
            refresh_every=every,
            curvature_batch=order,  # type: ignore[arg-type]
            scale="natural",
            trust=None,  # type: ignore[arg-type]
        )
        rows: dict[str, Tensor] = {}
        for step in range(7):
            x, y = batch(step)
            fresh = sample_rows(model, x, y)
            due = step % every == 0
            rows = fresh if due and (order == "current" or not rows) else rows
            got = directions(model, pre, x, y)
            how = {"damping": damping(step), "power": power, "natural": True}
            assert_close(got, dense(rows, plain_gradients(x, y), **how), EXACT)
            rows = fresh if due else rows
        pre.close()


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("scale", ["gradient", "natural"])
@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
def test_held_curvature_gives_the_dense_direction(mode: str, scale: str, power: float) -> None:
    model = perceptron()
    pre = Preconditioner(model, damping=0.3, damping_mode=mode, scale=scale, power=power, trust=0.7)  # type: ignore[arg-type]
    rows = sample_rows(model, *batch(0))
    directions(model, pre, *batch(0))
    x, y = batch(1)
    how = {"damping": 0.3, "relative": mode == "relative", "natural": scale == "natural", "power": power, "trust": 0.7}
    assert_close(directions(model, pre, x, y), dense(rows, plain_gradients(x, y), **how), EXACT)


# -- the trust cap ----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(trust=st.floats(0.05, 3), gain=st.floats(0.1, 100), damping=st.floats(0.01, 1))
def test_trust_caps_the_length_of_natural_steps(trust: float, gain: float, damping: float) -> None:
    model = perceptron()
    pre = Preconditioner(model, damping=damping, power=1.0, scale="natural", trust=trust)
    rows = sample_rows(model, *batch(0))
    directions(model, pre, *batch(0))
    got = directions(model, pre, *batch(1), scale=gain)
    for name in BLOCKS:
        fisher = rows[name].T @ rows[name] / len(rows[name])
        metric = fisher + damping * fisher.trace() / len(rows[name]) * torch.eye(len(fisher), dtype=torch.float64)
        assert (got[name] @ metric @ got[name]).sqrt() <= trust * CAP
    pre.close()


def test_trust_one_leaves_the_samples_own_gradient_alone() -> None:
    x, y = batch(0)
    got = []
    for trust in (1.0, None):
        model = perceptron()
        got.append(directions(model, Preconditioner(model, trust=trust), x, y))
    assert_close(got[0], got[1], CAP - 1)


def test_trust_cap_is_the_same_for_mean_and_sum_losses() -> None:
    got = []
    for reduction, scale in (("mean", 1.0), ("sum", 8.0)):
        model = perceptron()
        pre = Preconditioner(model, loss_reduction=reduction, trust=0.1, scale="natural")  # type: ignore[arg-type]
        directions(model, pre, *batch(0), scale=scale)
        got.append(directions(model, pre, *batch(1), scale=scale))
    # the sum's gradient is 8 times the mean's, curvature and cap are the same
    assert_close({name: d / 8 for name, d in got[1].items()}, got[0], EXACT)


# -- invariance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_infinite_damping_gives_the_gradient(power: float) -> None:
    model = perceptron()
    x, y = batch(0)
    got = directions(model, Preconditioner(model, damping=1e12, power=power, scale="gradient"), x, y)
    assert_close(got, plain_gradients(x, y), 1e-11)  # about 1 / damping


@settings(max_examples=15, deadline=None)
@given(c=st.floats(1e-3, 1e3), power=st.sampled_from([1.0, 0.5]), trust=st.sampled_from([None, 0.3]))
def test_relative_damping_with_gradient_scale_follows_the_loss(c: float, power: float, trust: float | None) -> None:
    got = []
    for scale in (1.0, c):
        model = perceptron()
        pre = Preconditioner(model, power=power, scale="gradient", trust=trust)
        directions(model, pre, *batch(0), scale=scale)
        got.append(directions(model, pre, *batch(1), scale=scale))
    assert_close(got[1], {name: c * d for name, d in got[0].items()}, EXACT)


@settings(max_examples=15, deadline=None)
@given(c=st.floats(1e-3, 1e3), trust=st.sampled_from([None, 0.3]))
def test_power_one_half_is_blind_to_the_losses_scale(c: float, trust: float | None) -> None:
    got = []
    for scale in (1.0, c):
        model = perceptron()
        pre = Preconditioner(model, power=0.5, trust=trust)
        directions(model, pre, *batch(0), scale=scale)
        got.append(directions(model, pre, *batch(1), scale=scale))
    assert_close(got[1], got[0], EXACT)


@pytest.mark.parametrize("estimator", ["exact", "truncated", "explicit"])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_order_of_samples_does_not_matter(estimator: str, power: float) -> None:
    (x, y), got = batch(0), []
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for index in (slice(None), order):
        model = perceptron()
        got.append(directions(model, Preconditioner(model, estimator=estimator, power=power), x[index], y[index]))  # type: ignore[arg-type]
    assert_close(got[1], got[0], EXACT)


def test_sum_loss_gives_the_direction_of_the_mean() -> None:
    (x, y), got = batch(0), []
    for reduction, scale in (("mean", 1.0), ("sum", 8.0)):
        model = perceptron()
        pre = Preconditioner(model, loss_reduction=reduction, scale="gradient")  # type: ignore[arg-type]
        got.append(directions(model, pre, x, y, scale=scale))
    assert_close({name: d / 8 for name, d in got[1].items()}, got[0], EXACT)


def test_grad_scaler_does_not_show_in_the_curvature() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = batch(0)
    plain, scaled = perceptron(), perceptron()
    expected = directions(plain, Preconditioner(plain), x, y)
    pre = Preconditioner(scaled, grad_scaler=scaler)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.0)
    scaler.scale((scaled(x) - y).square().sum(1).mean()).backward()
    scaler.unscale_(optimizer)
    assert pre.step()
    assert_close(flat_gradients(scaled), expected, EXACT)


# -- moving average ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("estimator", ["exact", "truncated"])
def test_moving_average_matches_the_dense_one(power: float, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncated, "TOLERANCE", 1e-14)  # so that merging alone is left to see
    n, ema = 40, 0.6  # more samples than parameters: the summaries can hold every direction
    model = perceptron()
    pre = Preconditioner(
        model, ema=ema, power=power, damping=0.2, refresh_every=2, curvature_batch="current", scale="natural",
        trust=None, estimator=estimator,  # type: ignore[arg-type]
    )  # fmt: skip
    fishers: dict[str, Tensor] = {}
    for step in range(6):
        x, y = batch(step, n)
        if step % 2 == 0:
            for name, rows in sample_rows(model, x, y).items():
                new = rows.T @ rows / n
                fishers[name] = ema * fishers[name] + (1 - ema) * new if name in fishers else new
        got = directions(model, pre, x, y)
        for name, g in plain_gradients(x, y).items():
            expected = damped_power(fishers[name], 0.2 * float(fishers[name].trace()) / n, power, g)
            assert (got[name] - expected).norm() <= EXACT * expected.norm()


# -- random draws -----------------------------------------------------------------------------------------------------


def last_direction(seed: int, sketch: str) -> Tensor:
    model = perceptron()
    pre = Preconditioner(model, seed=seed, estimator=Sketched(sketch, rows=6), refresh_every=2)
    return [directions(model, pre, *batch(step))["0"] for step in range(4)][-1]


@pytest.mark.parametrize("sketch", ["uniform", "row_norm", "gaussian", "sparse_sign"])
def test_seed_decides_every_draw(sketch: str) -> None:
    torch.manual_seed(0)
    first = last_direction(3, sketch)
    torch.manual_seed(1)  # the global generator has no say
    assert torch.equal(first, last_direction(3, sketch))
    assert not torch.equal(first, last_direction(4, sketch))


def test_draws_differ_between_layers_and_refreshes() -> None:
    model = perceptron()
    pre = Preconditioner(model, curvature_batch="current", estimator=Sketched(rows=6), refresh_every=1)
    one = directions(model, pre, *batch(0))
    two = directions(model, pre, *batch(0))
    assert not torch.equal(one["0"], two["0"])


def test_global_random_state_is_not_touched() -> None:
    model = perceptron()
    pre = Preconditioner(model, estimator=Sketched(rows=6), refresh_every=2)
    before = torch.get_rng_state()
    directions(model, pre, *batch(0))
    assert torch.equal(before, torch.get_rng_state())


# -- what passes through ----------------------------------------------------------------------------------------------


class WithScale(torch.nn.Module):
    """A covered layer, and a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()
        self.gain = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.gain


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("scale", ["gradient", "natural"])
@pytest.mark.parametrize("trust", [None, 1.0])
def test_uncovered_parameters_move_at_the_pace_of_the_rest(power: float, scale: str, trust: float | None) -> None:
    model = WithScale()
    pre = Preconditioner(model, power=power, scale=scale, damping=0.2, trust=trust)  # type: ignore[arg-type]
    backward(model, *batch(0))
    assert model.gain.grad is not None
    plain = model.gain.grad.clone()
    assert pre.step()
    mean = sum(stats.damping for stats in pre.stats().values()) / len(BLOCKS)
    pace = mean**-power if scale == "natural" else 1.0
    if trust is not None and scale == "natural":
        pace = min(pace, 1.0, trust * mean ** (0.5 - power) / float(plain.norm()))
    torch.testing.assert_close(model.gain.grad, plain * pace, rtol=EXACT, atol=0)


def test_released_code_divides_uncovered_parameters_by_one_plus_damping() -> None:
    model = WithScale()
    pre = Preconditioner(model, preset="paper", estimator="paper-code", damping=0.4)
    backward(model, *batch(0))
    assert model.gain.grad is not None
    plain = model.gain.grad.clone()
    assert pre.step()
    torch.testing.assert_close(model.gain.grad, plain / 1.4, rtol=EXACT, atol=0)


def test_released_code_keeps_the_damping_of_the_refresh_inside() -> None:
    model = perceptron()
    rows = sample_rows(model, *batch(0))
    pre = Preconditioner(
        model, preset="paper", estimator=PaperCode(rows=1000), refresh_every=5, damping=Exponential(0.4, 0.5)
    )
    directions(model, pre, *batch(0))
    x, y = batch(1)
    got = directions(model, pre, x, y)
    for name, g in plain_gradients(x, y).items():
        u = rows[name].T / 8**0.5
        inner = torch.linalg.solve(u.T @ u + 0.4 * torch.eye(8, dtype=torch.float64), u.T @ g)
        expected = (g - u @ inner) / 0.2
        assert (got[name] - expected).norm() <= EXACT * expected.norm()


def test_released_code_at_full_size_is_the_exact_step_of_the_paper() -> None:
    model = perceptron()
    x, y = batch(0)
    pre = Preconditioner(model, preset="paper", estimator=PaperCode(rows=1000), damping=0.4)
    expected = dense(sample_rows(model, x, y), plain_gradients(x, y), damping=0.4, relative=False, natural=True)
    assert_close(directions(model, pre, x, y), expected, EXACT)


# -- schedules that go wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "schedule"),
    [
        ("damping", lambda step: 0.1 if step != 2 else -1.0),
        ("refresh_every", lambda step: 2 if step != 3 else 0),  # prepared at the end of step 2
    ],
)
def test_bad_schedule_value_stops_the_step_and_changes_nothing(option: str, schedule: Callable[[int], Any]) -> None:
    model = perceptron()
    options: dict[str, Any] = {option: schedule}
    pre = Preconditioner(model, **options)
    for step in range(2):
        directions(model, pre, *batch(step))
    backward(model, *batch(2))
    before, grads = snapshot(model, pre), flat_gradients(model)
    with pytest.raises(OptionError, match=rf"^step\(\): {option} schedule out of range: expected .* at step [23]\."):
        pre.step()
    assert snapshot(model, pre) == before
    assert all(torch.equal(grads[name], g) for name, g in flat_gradients(model).items())


def test_steps_check_the_refresh_schedule_before_anything_changes() -> None:
    model = perceptron()
    pre = Preconditioner(model, refresh_every=lambda step: 1 if step < 2 else 0)
    directions(model, pre, *batch(0))
    backward(model, *batch(1))
    plain = flat_gradients(model)
    with pytest.raises(OptionError, match=r"^step\(\): refresh_every schedule out of range: expected an integer >= 1"):
        pre.step()
    assert pre.steps == 1
    assert all(torch.equal(g, plain[name]) for name, g in flat_gradients(model).items())
