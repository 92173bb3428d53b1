"""Laws of models and gradients that are changed during training: nothing goes on with what no longer holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import SENG, Preconditioner
from seng.errors import OrderError

from .capturing import N, loss_of, mlp, random

REWEIGHTED: dict[str, Any] = {
    "reweight": True, "refresh_every": 1, "curvature_batch": "current", "estimator": "exact",
    "distributed": "none",
}  # fmt: skip
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mask": lambda g: g * (torch.arange(g.numel()).view_as(g) % 2),
    "scale": lambda g: 2 * g,
    "sign": lambda g: -g,
    "zero": torch.zeros_like,
    "norm": lambda g: g / g.norm(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("key", ["weight", "bias"])
def test_layer_whose_gradient_a_hook_changes_in_part_keeps_it(change: str, key: str):
    model, x = mlp(), random(1, N, 3)
    dict(model.named_parameters())[f"2.{key}"].register_hook(CHANGES[change])
    pre = Preconditioner(model, power=1.0, trust=None, scale="natural", damping_mode="absolute", damping=0.1)
    loss_of(model, x).backward()
    before = [p.grad.clone() for p in model[2].parameters() if p.grad is not None]
    with pytest.warns(UserWarning, match=r"keep their plain gradient: 2 \(the captured samples do not add up"):
        pre.step()
    assert set(pre.coverage().passed_through) == {"2.weight", "2.bias"}
    pairs = [(p.grad, g) for p, g in zip(model[2].parameters(), before, strict=True)]
    factors = [float((d * g).sum() / (g * g).sum()) for d, g in pairs if d is not None and g.any()]
    for d, g in pairs:
        assert d is not None
        torch.testing.assert_close(d, factors[0] * g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("refresh_every", [1, 10])
@pytest.mark.parametrize("base", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_model_may_change_its_dtype_between_steps(dtype: torch.dtype, refresh_every: int, base: str, power: float):
    def trained(changes: bool) -> list[Tensor]:
        model, x = mlp(), random(1, N, 3)
        options: dict[str, Any] = {"refresh_every": refresh_every, "power": power, "base": base}
        optimizer = SENG(model, lr=0.01, **options)
        for step in range(4):
            if changes and step == 2:
                model.to(dtype)
            optimizer.zero_grad()
            loss_of(model, x.to(next(model.parameters()).dtype)).backward()
            optimizer.step()
        return [p.detach().double() for p in model.parameters()]

    tolerance = 30 * torch.finfo(dtype).eps
    for a, b in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_trained_parameters_outside_all_groups_are_named():
    model, x = mlp(), random(1, N, 3)
    optimizer = SENG(model, lr=0.1, refresh_every=1)
    loss_of(model, x).backward()
    optimizer.step()
    model[4] = nn.Linear(4, 2).double()
    weight = model[4].weight
    assert isinstance(weight, nn.Parameter)
    assert set(optimizer.coverage().passed_through) == {"4.weight", "4.bias"}
    assert optimizer.coverage().share < 1
    optimizer.add_param_group({"params": list(model[4].parameters())})
    before = weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
    assert not optimizer.coverage().passed_through
    assert not torch.equal(before, weight)


def test_coverage_between_refreshes_lets_a_new_layer_be_captured():
    model, x = mlp(), random(1, N, 3)
    pre = Preconditioner(model, refresh_every=10)
    for _ in range(2):
        loss_of(model, x).backward()
        pre.step()
    model[4] = nn.Linear(4, 2).double()
    pre.coverage()
    model.zero_grad()
    loss_of(model, x).backward()
    pre.step()
    assert pre.coverage().share == 1
    assert "small_batches" not in pre.counters


def test_armed_hooks_let_many_rows_of_a_jacobian_be_taken_at_once():
    model, x = mlp(), random(1, N, 3)
    parameters, rows = list(model.parameters()), torch.eye(2, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).sum(0), parameters, rows, is_grads_batched=True)
    pre = Preconditioner(model)
    got = torch.autograd.grad(model(x).sum(0), parameters, rows, is_grads_batched=True)
    pre.close()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_withheld_weights_are_the_modules_own_alone():
    model, x = mlp(), random(1, N, 3)
    pre = Preconditioner(model, **REWEIGHTED)
    other = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    output = torch.func.functional_call(model, other, (x,))
    grads = torch.autograd.grad(output.square().sum(), list(other.values()))
    pre.close()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)
    pre = Preconditioner(model, **REWEIGHTED)
    with torch.autograd.forward_ad.dual_level():
        dual = model(torch.autograd.forward_ad.make_dual(x, x))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    pre.close()
    assert tangent is not None
    torch.testing.assert_close(tangent, torch.func.jvp(model, (x,), (x,))[1])


def test_scripting_a_hooked_model_is_refused_in_plain_words():
    model = mlp()
    pre = Preconditioner(model)
    with pytest.raises(OrderError, match=r"torch.jit.script\(\): the model has hooks of seng"):
        torch.jit.script(model)
    pre.close()
    torch.jit.script(model)
