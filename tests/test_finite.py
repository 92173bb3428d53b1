"""Whatever the size of finite gradients, a step writes finite directions within the trust cap, or changes nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import seng
from seng.direction import Projection, direction
from seng.estimators import Estimator
from seng.solve import EigenState, FactorisationError, SolveState
from seng.testing import dense_direction, oracle_rows, relative_error

from .unsupported import Slope

N = 12
OVER = 1.02  # bfloat16 gradients round the direction by 1 / 256, weight and bias alike
SAFE = 1e17  # above it squares of gradients, or sums of them, leave the range of float32: the step may be skipped
MODELS: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ),
    "positions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Flatten(), nn.Linear(5, 3)
    ),
    "passing": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Slope(), nn.Linear(8, 3)),
}
OPTIONS = st.fixed_dictionaries(
    {
        "power": st.sampled_from([0.5, 0.3, 0.7, 1.0]),
        "estimator": st.sampled_from(["auto", "exact", "explicit", "implicit", "truncated"]),
        "sketch_size": st.sampled_from([2, 4, 256]),
        "rank": st.sampled_from([1, 4]),
        "damping_mode": st.sampled_from(["relative", "absolute"]),
        "damping": st.sampled_from([1e-4, 1e-2, 0.1, 1.0]),
        "scale": st.sampled_from(["auto", "natural", "gradient"]),
        "curvature_batch": st.sampled_from(["previous", "current"]),
        "refresh_every": st.sampled_from([1, 3]),
        "trust": st.sampled_from([1.0, 0.1]),
        "ema": st.sampled_from([0.0, 0.9]),
    }
)


def _gradients(model: nn.Module, loss_scale: float, dtype: torch.dtype) -> list[Tensor]:
    model.zero_grad()
    loss = F.cross_entropy(model(torch.randn(N, 6, dtype=dtype)), torch.randint(3, (N,)))
    (loss * loss_scale).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([x.double().square().sum() for x in tensors]).sum().sqrt())


def assert_within_trust(model: nn.Module, pre: seng.Preconditioner, trust: float) -> None:
    for name in {} if pre.counters.get("failed_refreshes") else pre.stats():  # else some block may pass through
        own = [p.grad for p in model.get_submodule(name).parameters() if p.grad is not None]
        assert _norm(own) <= OVER * trust, name


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    options=OPTIONS,
    exponents=st.lists(st.floats(-30, 18) | st.just(0.0), min_size=5, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_directions_are_finite_or_nothing_changes(
    name: str, dtype: torch.dtype, options: dict[str, Any], exponents: list[float], seed: int
) -> None:
    torch.manual_seed(seed)
    model = MODELS[name]().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pre = seng.Preconditioner(model, **options)
        for exponent in exponents:
            before = _gradients(model, 10.0**exponent, dtype)
            finite = all(bool(x.isfinite().all()) for x in before)
            taken = pre.step()
            after = [p.grad for p in model.parameters() if p.grad is not None]
            assert taken or not finite or _norm(before) > SAFE
            if taken:
                assert all(bool(x.isfinite().all()) for x in after)
            else:
                assert all(torch.equal(a, b) or not finite for a, b in zip(before, after, strict=True))
            natural = options["scale"] == "natural" or (options["scale"] == "auto" and options["power"] < 1)
            if taken and natural and options["power"] == 0.5:
                assert_within_trust(model, pre, options["trust"])
        pre.close()


@pytest.mark.parametrize("exponent", [-10, -4, 4, 10, 15])
@pytest.mark.parametrize("curvature_batch", ["previous", "current"])
def test_direction_of_power_one_half_does_not_see_the_loss_scale_in_float32(
    exponent: int, curvature_batch: str
) -> None:
    found = []
    for loss_scale in (1.0, 10.0**exponent):
        torch.manual_seed(0)
        model = MODELS["linear"]()
        pre = seng.Preconditioner(model, refresh_every=1, curvature_batch=curvature_batch)  # type: ignore[arg-type]
        for _ in range(2):
            _gradients(model, loss_scale, torch.float32)
            assert pre.step()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert relative_error(found[1], found[0]) <= 1e-4  # float32, condition of K + damping I about 100


@pytest.mark.parametrize("estimator", [seng.Sketched(rows=8), seng.LowRank(rank=1, rows=4)])
@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("trust", [1.0, 0.1])
def test_trust_bounds_sketched_directions_in_the_metric_of_the_exact_curvature(
    estimator: Estimator, power: float, trust: float
) -> None:
    longest = 0.0
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Linear(20, 6, bias=False).double()
        pre = seng.Preconditioner(model, power=power, trust=trust, scale="natural", estimator=estimator)
        first, second, target = torch.randn(N, 20).double(), torch.randn(N, 20).double(), torch.randn(N, 6).double()
        rows = oracle_rows(model, lambda m=model, x=first, t=target: (m(x) - t).square().sum(1).mean(), N)[""] * N
        for x in (first, second):
            model.zero_grad()
            (model(x) - target).square().sum(1).mean().backward()
            pre.step()
        assert model.weight.grad is not None
        d, damping = model.weight.grad.flatten(), pre.stats()[""].damping
        metric = d @ d if power == 0.5 else damping * (d @ d) + (rows @ d).square().sum() / N
        longest = max(longest, float(metric) ** 0.5)
    assert longest == pytest.approx(trust, rel=1e-9)  # the case is one in which the cap acts


def test_trust_of_exact_curvature_is_not_taken_from_a_bound() -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 6, bias=False).double()
    pre = seng.Preconditioner(model, power=0.7, trust=0.1, scale="natural", estimator=seng.Sketched(rows=256))
    x = torch.randn(N, 20).double()
    rows = oracle_rows(model, lambda: model(x).square().sum(1).mean(), N)[""] * N
    model(x).square().sum(1).mean().backward()
    assert model.weight.grad is not None
    g = model.weight.grad.flatten().clone()
    pre.step()
    expected = dense_direction(rows, g, damping=0.1, power=0.7, natural=True, trust=0.1)
    assert relative_error(model.weight.grad.flatten(), expected) <= 1e-9


def test_trust_cap_holds_where_the_damping_is_next_to_the_rounding_of_the_curvature() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"damping_mode": "absolute", "damping": 1e-4, "refresh_every": 1, "ema": 0.9}
    law = test_directions_are_finite_or_nothing_changes.hypothesis.inner_test  # type: ignore[attr-defined]
    drawn = {"power": 0.5, "estimator": "auto", "sketch_size": 4, "rank": 1, "scale": "auto"}
    drawn |= {"curvature_batch": "previous", "trust": 1.0, **options}
    law("positions", torch.float32, drawn, [0.0, 0.0, 4.5, 3.0, 0.0], 0)


def test_direction_that_cannot_be_solved_for_is_zero() -> None:
    class Broken(EigenState):
        def coefficients(self, y: Tensor, damping: Tensor, power: float, tolerance: float = 0.0) -> Tensor:
            raise FactorisationError("no factorisation of the Gram matrix converged")

        with_metric = SolveState.with_metric

    model = nn.Linear(3, 2)
    pre = seng.Preconditioner(model)
    model(torch.randn(N, 3)).square().mean().backward()
    pre.step()
    curvature = pre._curvature[""]  # pyright: ignore[reportPrivateUsage]
    seen = Projection(torch.ones(curvature.factor.n if curvature.factor else 1), torch.tensor(1.0))
    broken = type(curvature)(**{**vars(curvature), "state": Broken(torch.ones(1), torch.eye(1))})
    found = direction(broken, seen, pre.options, 1)
    assert not found.z.any()
    assert not found.multiplier.any()
