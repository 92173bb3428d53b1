"""Withheld gradients: a weighted sum over samples is the direction that preconditioning ``.grad`` gives."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seng
from seng.curvature import Curvature, refresh
from seng.errors import OptionError, OrderError
from seng.per_sample import Rows

ROUNDING = 1e-12  # float64, five steps; the two ways sum the same products in another order
NEEDED: dict[str, Any] = {
    "refresh_every": 1, "curvature_batch": "current", "estimator": "exact", "distributed": "none"
}  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(True), nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)]
    return nn.Sequential(*layers).double()


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 1).pow(4).sum(-1).mean()


def trained(
    reweight: bool, steps: int = 5, penalty: float = 0.0, shape: tuple[int, ...] = (7, 6), **options: Any
) -> Tensor:
    model = network()
    optimizer = seng.SENG(model, lr=0.1, reweight=reweight, **{**NEEDED, **options})
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, torch.randn(shape, generator=generator, dtype=torch.float64))
        (loss + penalty * model[2].weight.square().sum()).backward()  # type: ignore[union-attr, operator]
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(7, 6), (5, 4, 6)])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_reweighting_equals_preconditioning(power: float, shape: tuple[int, ...], penalty: float) -> None:
    plain = trained(False, power=power, shape=shape, penalty=penalty)
    assert (trained(True, power=power, shape=shape, penalty=penalty) - plain).norm() <= ROUNDING * plain.norm()


def test_backward_leaves_out_the_gradients_of_linear_layers_only() -> None:
    model = network()
    optimizer = seng.SENG(model, reweight=True, **NEEDED)
    loss_of(model, torch.randn(7, 6, dtype=torch.float64)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["4.weight", "4.bias"]
    assert all(p.requires_grad for p in model.parameters())
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())


def test_accumulation_equals_one_batch() -> None:
    results = []
    for sizes in ([8], [5, 3]):
        model = network()
        optimizer = seng.SENG(model, reweight=True, **NEEDED)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        for part in x.split(sizes):
            (loss_of(model, part) * len(part) / len(x)).backward()
        optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (results[0] - results[1]).norm() <= ROUNDING * results[0].norm()


def test_sum_losses_equal_preconditioning() -> None:
    results = []
    for reweight in (False, True):
        model = network()
        optimizer = seng.SENG(model, lr=0.1, reweight=reweight, loss_reduction="sum", **NEEDED)
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        (loss_of(model, x) * len(x)).backward()
        optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (results[0] - results[1]).norm() <= ROUNDING * results[0].norm()


class Branching(nn.Module):
    """A layer that only some micro-batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(6, 6), nn.Linear(6, 6)
        self.branch = True

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.always(x))
        return self.sometimes(x) if self.branch else x


def test_layer_absent_from_a_micro_batch_equals_preconditioning() -> None:
    results = []
    for reweight in (False, True):
        torch.manual_seed(0)
        model = Branching().double()
        optimizer = seng.SENG(model, lr=0.1, reweight=reweight, **NEEDED)
        for branch, n in ((True, 5), (False, 3)):
            model.branch = branch
            x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
            (loss_of(model, x) * n / 8).backward()
        optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (results[0] - results[1]).norm() <= ROUNDING * results[0].norm()


def test_layer_frozen_later_stays_frozen() -> None:
    model = network()
    optimizer = seng.SENG(model, reweight=True, **NEEDED)
    first = model[0]
    for p in first.parameters():
        p.requires_grad_(False)
    before = torch.cat([p.flatten() for p in first.parameters()])
    loss_of(model, torch.randn(7, 6, dtype=torch.float64)).backward()
    optimizer.step()
    assert not any(p.requires_grad for p in first.parameters())
    assert torch.equal(before, torch.cat([p.flatten() for p in first.parameters()]))


def test_gradients_return_when_a_forward_pass_fails() -> None:
    model = network()
    seng.SENG(model, reweight=True, **NEEDED)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(7, 5, dtype=torch.float64))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_skips_the_step(bad: float) -> None:
    model = network()
    optimizer = seng.SENG(model, reweight=True, **NEEDED)
    before = [p.detach().clone() for p in model.parameters()]
    (loss_of(model, torch.randn(7, 6, dtype=torch.float64)) * bad).backward()
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.preconditioner.counters["skipped_steps"] == 1
    assert optimizer.preconditioner.steps == 0


def test_step_before_backward_is_refused() -> None:
    optimizer = seng.SENG(network(), reweight=True, **NEEDED)
    with pytest.raises(OrderError, match="no gradients"):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refresh_every", 2), ("curvature_batch", "previous"), ("estimator", "auto"), ("distributed", "local"),
        ("ema", 0.5), ("positions", "expand"), ("grad_scaler", torch.amp.GradScaler("cpu", enabled=False)),
    ],
)  # fmt: skip
def test_options_that_need_gradients_are_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"reweight does not go with this {name}"):
        seng.SENG(network(), reweight=True, **{**NEEDED, name: value})


def test_rows_of_other_layers_are_held_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Rows]] = []
    most: list[int] = []

    def watched(*args: Any) -> tuple[Curvature, int]:
        curvature, failed = refresh(*args)
        if isinstance(curvature.factor, Rows):
            alive.append(weakref.ref(curvature.factor))
        most.append(sum(factor() is not None for factor in alive))
        return curvature, failed

    monkeypatch.setattr("seng.refreshing.refresh.refresh", watched)
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten()]
    model = nn.Sequential(*convolutions, nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = seng.SENG(model, reweight=True, power=0.5, **NEEDED)
    loss_of(model, torch.randn(6, 2, 12, 12, dtype=torch.float64)).backward()
    optimizer.step()
    assert len(alive) == 3
    assert len(most) == 5
    assert max(most) == 1


def test_batch_without_gradients_leaves_zeros_and_the_next_ones_train() -> None:
    model = network()
    optimizer = seng.SENG(model, lr=0.1, weight_decay=0, reweight=True, **NEEDED)
    before = [p.detach().clone() for p in model.parameters()]
    for factor in (0.0, 1.0):
        optimizer.zero_grad()
        (factor * loss_of(model, torch.randn(7, 6, dtype=torch.float64))).backward()
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters())
        moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        assert moved == [factor > 0] * len(before)
