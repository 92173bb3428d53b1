"""A refresh in stages, and its solution as a message from the rank that made it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from seng.blocks import Block
from seng.config import Options
from seng.curvature import (
    FLOOR,
    BlockParts,
    Curvature,
    Draft,
    Pool,
    Solution,
    damping_at,
    draft,
    hold,
    refresh,
    solve,
)
from seng.estimators import Choice, Form, Operator, Truncated
from seng.grouping import lay_out
from seng.per_sample import Product
from seng.planning.choice import solver_for
from seng.refreshing.solutions import from_message, message_size, read_heads, to_message
from seng.solve import EigenState

ROUNDING = 1e-12  # float64; K is mirrored at its diagonal on the way
N = 5
SETTINGS: dict[str, tuple[Form, dict[str, Any]]] = {
    "eigen": (Operator(), {}),
    "cholesky": (Operator(), {"power": 1.0}),
    "direct": (Operator(), {"power": 1.0, "curvature_batch": "current", "refresh_every": 1}),
    "truncated": (Truncated(), {}),
    "moving average": (Operator(), {"ema": 0.4}),
}


def block() -> Block:
    return lay_out(nn.Linear(4, 3).double(), Options(), "test").blocks[""]


def parts(seed: int = 0) -> BlockParts:
    generator = torch.Generator().manual_seed(seed)
    a, g = (torch.randn(1, N, 1, d, generator=generator, dtype=torch.float64) for d in (4, 3))
    return ((Product(a, g, bias=True), (0, 1)),)


def stages(setting: str) -> tuple[Draft, Solution, Options, Any]:
    form, changes = SETTINGS[setting]
    options = Options(**changes)
    choice = Choice(form, solver_for(form, options, 1))
    old = refresh(block(), parts(1), choice, Pool(N), options, 0, None)[0] if options.ema else None
    drafted = draft(block(), parts(), choice, Pool(N), options, 1, old)
    return drafted, solve(drafted, options, 1, old), options, old


@pytest.mark.parametrize("setting", SETTINGS)
def test_message_there_and_back_gives_the_same_curvature(setting: str) -> None:
    drafted, solution, options, old = stages(setting)
    message = to_message(drafted, solution, torch.zeros((), dtype=torch.float64))
    assert message.shape == (message_size(drafted),)
    again = from_message(drafted, message, read_heads([message])[0])
    assert again is not None
    form, _ = SETTINGS[setting]
    held, _ = refresh(block(), parts(), Choice(form, solver_for(form, options, 1)), Pool(N), options, 1, old)
    y = torch.arange(float(held.state.spectrum().numel()), dtype=torch.float64)
    for received in (hold(drafted, again, 1, None), hold(drafted, solution, 1, None)):
        assert received.factor is not None
        assert held.factor is not None
        assert received.factor.n == held.factor.n
        for got, expected in zip(
            (received.mean, received.damping, received.row_sums, received.state.coefficients(y, received.damping, 1.0)),
            (held.mean, held.damping, held.row_sums, held.state.coefficients(y, held.damping, 1.0)),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)


def test_ladder_that_ended_at_eigenvalues_travels_as_the_gram_matrix() -> None:
    drafted, solution, _, _ = stages("cholesky")
    assert solution.gram is not None
    values, vectors = torch.linalg.eigh(solution.gram)
    ended = replace(solution, state=EigenState(values, vectors), failed=6)
    message = to_message(drafted, ended, torch.zeros((), dtype=torch.float64))
    assert message.shape == (message_size(drafted),)
    again = from_message(drafted, message, read_heads([message])[0])
    assert again is not None
    assert isinstance(again.state, EigenState)
    assert again.failed == 6
    torch.testing.assert_close(again.state.spectrum(), values, rtol=ROUNDING, atol=ROUNDING)


def test_failure_is_told() -> None:
    drafted, _, _, _ = stages("eigen")
    message = to_message(drafted, None, torch.zeros((), dtype=torch.float64))
    assert message.shape == (message_size(drafted),)
    assert from_message(drafted, message, read_heads([message])[0]) is None


def test_curvature_that_cannot_be_divided_by_is_told() -> None:
    drafted, solution, _, _ = stages("truncated")
    message = to_message(drafted, replace(solution, usable=False), torch.zeros((), dtype=torch.float64))
    again = from_message(drafted, message, read_heads([message])[0])
    assert again is not None
    assert hold(drafted, again, 1, None).factor is None


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 6**0.5 / 3), ("sum", 6**-0.5)])
def test_pool_scales_by_samples_and_ranks(reduction: str, expected: float) -> None:
    assert Pool(6, 3).scale(Options(loss_reduction=reduction)) == pytest.approx(expected)


def test_pool_takes_the_loss_scale_out() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert Pool(4).scale(Options(grad_scaler=scaler)) == pytest.approx(2 / 8)


def test_no_messages_have_no_heads() -> None:
    assert read_heads([]) == []


def _refreshed(loss_scale: float, old: Curvature | None, **options: Any) -> Curvature:
    (io, slots), *_ = parts()
    assert isinstance(io, Product)
    scaled = ((replace(io, g=io.g * loss_scale), slots),)
    return refresh(block(), scaled, Choice(Operator()), Pool(N), Options(**options), 1, old)[0]


def test_relative_damping_stays_at_a_share_of_its_largest() -> None:
    first = _refreshed(1.0, None)
    small, tiny, later = (_refreshed(c, first) for c in (0.1, 1e-4, 1.0))
    assert float(small.mean) == pytest.approx(0.01 * float(first.mean))
    assert float(tiny.mean) == pytest.approx(FLOOR * float(first.mean))
    assert float(tiny.damping) == pytest.approx(0.1 * FLOOR * float(first.mean))
    assert torch.equal(tiny.peak, first.mean)
    assert torch.equal(later.mean, first.mean)
    assert tiny.factor is not None


def test_floor_of_the_damping_makes_no_direction_shorter_than_the_gradient() -> None:
    first = _refreshed(1e6, None)
    assert float(_refreshed(1e-6, first).damping) == pytest.approx(1.0)


def test_damping_of_directions_of_the_gradients_scale_has_no_floor() -> None:
    first = _refreshed(1.0, None, power=1.0)
    assert float(_refreshed(1e-4, first, power=1.0).mean) == pytest.approx(1e-8 * float(first.mean))


def test_damping_is_not_below_the_rounding_of_the_gram() -> None:
    mean = torch.tensor([1.0, 1e12])
    found = damping_at(Options(damping=1e-3, damping_mode="absolute"), 0, mean)
    assert found.tolist() == pytest.approx([1e-3, 16e12 * torch.finfo(torch.float32).eps])
