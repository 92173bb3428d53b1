"""Agreement with the oracle is noticed, and so is its absence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seng.testing import blocks_of, captured_rows, check_direction, check_rows, oracle_rows, relative_error

N = 5


class _Leaky(nn.Module):
    """Reads its layer's weight once more, beside the layer."""

    def __init__(self):
        super().__init__()
        self.seen = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.seen(x).tanh(), self.seen.weight))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("trust", [None, 0.5])
def test_check_direction_passes_for_every_reduction_and_cap(
    model: nn.Module, x: Tensor, reduction: str, trust: float | None
):
    def loss() -> Tensor:
        return F.mse_loss(model(x), x[:, :2], reduction="sum") / (N if reduction == "mean" else 1)

    check_direction(model, loss, N, loss_reduction=reduction, trust=trust)


def test_check_direction_notices_an_estimator_that_is_not_exact(model: nn.Module, x: Tensor):
    with pytest.raises(AssertionError, match="check_direction: expected a relative error of at most 1e-09, got .* at"):
        check_direction(model, lambda: model(x).square().sum(1).mean(), N, estimator="explicit", sketch_size=2)


def test_check_direction_takes_selections(model: nn.Module, x: Tensor):
    assert set(blocks_of(model, exclude=["0"])) == {"2"}
    check_direction(model, lambda: model(x).square().sum(1).mean(), N, exclude=["0"])
    check_direction(model, lambda: model(x).square().sum(1).mean(), N, include=["0"])


def test_captured_rows_add_up_to_the_gradient(model: nn.Module, x: Tensor):
    rows = captured_rows(model, lambda: model(x).square().sum())
    for name, block in blocks_of(model).items():
        grad = torch.cat([p.grad.flatten() for p in block.parameters if p.grad is not None])
        assert relative_error(rows[name].sum(0), grad) <= 1e-14, name  # two orders of summation in float64


def test_checks_skip_layers_out_of_reach(x: Tensor):
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)}).double()

    def loss() -> Tensor:
        return model["used"](x).square().sum(1).mean()

    assert set(captured_rows(model, loss)) == {"used"}
    assert not oracle_rows(model, loss, N)["idle"].any()
    check_rows(model, loss, N)
    with pytest.warns(UserWarning, match="did not use these layers, they pass through: idle"):
        check_direction(model, loss, N)


def test_check_rows_counts_only_calls_of_the_layer(x: Tensor):
    torch.manual_seed(0)
    model = _Leaky().double()

    def loss() -> Tensor:
        return model(x).square().sum(1).mean()

    rows = captured_rows(model, loss)["seen"].sum(0)
    grad = torch.cat([p.grad.flatten() for p in model.seen.parameters() if p.grad is not None])
    assert relative_error(rows, grad) > 0.01
