"""Copies, complex parameters and layers without a rule: nothing is taken for what it is not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seng
from seng.errors import OptionError, OrderError

REWEIGHT: dict[str, Any] = {
    "refresh_every": 1, "curvature_batch": "current", "estimator": "exact", "distributed": "none", "reweight": True
}  # fmt: skip


def backward(model: nn.Module, n: int) -> None:
    model(torch.randn(n, 4)).square().sum(1).mean().backward()


def test_copy_of_a_hooked_model_is_not_recorded() -> None:
    model = nn.Linear(4, 3)
    pre = seng.Preconditioner(model)
    backward(copy.deepcopy(model), 4)
    backward(model, 8)
    pre.step()
    assert pre.stats()[""].samples == 8


def test_copy_of_a_reweighted_model_keeps_its_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    seng.SENG(model, **REWEIGHT)
    other = copy.deepcopy(model)
    backward(other, 4)
    assert all(p.grad is not None for p in other.parameters())


class WithComplex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) * self.phase).abs()


def test_complex_parameters_pass_through() -> None:
    model = WithComplex()
    with pytest.warns(UserWarning, match=r"keep their plain gradient: phase"):
        pre = seng.Preconditioner(model, power=1.0)
    backward(model, 8)
    assert model.phase.grad is not None
    before = model.phase.grad.clone()
    assert pre.step()
    assert torch.equal(model.phase.grad, before)
    assert set(pre.coverage().passed_through) == {"phase"}


def test_complex_layer_passes_through() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, dtype=torch.complex64))
    with pytest.warns(UserWarning, match=r"1.weight \(complex parameters are not supported\)"):
        seng.Preconditioner(model)


def test_layers_without_a_rule_are_named_once_at_the_start() -> None:
    with pytest.warns(UserWarning, match=r"0\.weight_ih_l0 \(LSTM is not supported\)"):
        seng.Preconditioner(nn.Sequential(nn.LSTM(4, 3), nn.Linear(3, 2)))


def test_excluded_layers_are_not_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    seng.Preconditioner(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), exclude=["0"])
    assert not recwarn.list


def test_closure_may_return_nothing() -> None:
    model = nn.Linear(4, 3)
    optimizer = seng.SENG(model)
    before = model.weight.detach().clone()
    assert optimizer.step(lambda: backward(model, 8)) is None  # type: ignore[arg-type, return-value]
    assert not torch.equal(model.weight, before)


def test_one_cycle_schedule_moves_momentum() -> None:
    optimizer = seng.SENG(nn.Linear(4, 3), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=10)
    assert optimizer.param_groups[0]["momentum"] == 0.95


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_optimizer_is_neither_copied_nor_pickled(duplicate: Any) -> None:
    with pytest.raises(OrderError, match="hooks belong to one model"):
        duplicate(seng.SENG(nn.Linear(4, 3)))


def test_unknown_strategy_lists_auto() -> None:
    with pytest.raises(OptionError, match=r"'auto' \| 'none' \| 'local'"):
        seng.Preconditioner(nn.Linear(4, 3), distributed="ring")


def test_coverage_of_a_loaded_state_is_held() -> None:
    model = nn.Linear(4, 3)
    pre = seng.Preconditioner(model)
    assert set(pre.coverage().preconditioned.values()) == {"to be chosen at the first refresh"}
    backward(model, 8)
    pre.step()
    other = seng.Preconditioner(model)
    other.load_state_dict(pre.state_dict())
    assert set(other.coverage().preconditioned.values()) == {"held from a loaded state"}


def test_optimizer_counts_what_its_preconditioner_counts() -> None:
    model = nn.Linear(4, 3)
    optimizer = seng.SENG(model)
    with pytest.warns(UserWarning, match="the loss is not finite"):
        optimizer.step(lambda: torch.tensor(float("nan")))
    assert optimizer.counters == {"skipped_steps": 1}


@pytest.mark.parametrize("options", [{}, {"power": 1.0}, REWEIGHT, {**REWEIGHT, "power": 1.0}], ids=str)
@pytest.mark.parametrize("scale", [1e-20, 1e-24, 1e-30, 0.0])
def test_vanishing_gradients_give_finite_directions(options: dict[str, Any], scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    pre = seng.Preconditioner(model, **options)
    for _ in range(2):
        model.zero_grad()
        (model(torch.randn(8, 4)).square().sum(1).mean() * scale).backward()
        assert pre.step()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("reweight", [False, True])
def test_half_precision_parameters_get_half_precision_directions(reweight: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).bfloat16()
    pre = seng.Preconditioner(model, **{**REWEIGHT, "reweight": reweight})
    model(torch.randn(8, 4, dtype=torch.bfloat16)).square().sum(1).mean().backward()
    pre.step()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.dtype == torch.bfloat16 and bool(g.isfinite().all()) for g in grads)
