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

from .unsupported import Slope

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
    with pytest.warns(UserWarning, match=r"1\.weight, 1\.bias \(complex parameters are not supported\)"):
        seng.Preconditioner(model)


def test_layers_without_a_rule_are_named_once_at_the_start() -> None:
    with pytest.warns(UserWarning, match=r"0\.weight_ih, .* and 1 more \(LSTMCell is not supported\)"):
        seng.Preconditioner(nn.Sequential(nn.LSTMCell(4, 3), nn.Linear(3, 2)))


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
        seng.Preconditioner(nn.Linear(4, 3), distributed="ring")  # type: ignore[arg-type]


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
    pre = seng.Preconditioner(model, **{**REWEIGHT, "reweight": reweight})  # type: ignore[arg-type]
    model(torch.randn(8, 4, dtype=torch.bfloat16)).square().sum(1).mean().backward()
    pre.step()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.dtype == torch.bfloat16 and bool(g.isfinite().all()) for g in grads)


# -- sparse gradients, layers of width 0 ------------------------------------------------------------------------------


class Tables(nn.Module):
    """A table of which only the rows looked up have gradients, in front of a linear layer."""

    def __init__(self, kind: str, sparse: bool) -> None:
        super().__init__()
        self.bag = kind == "bag"
        self.table = nn.EmbeddingBag(10, 4, sparse=sparse) if self.bag else nn.Embedding(10, 4, sparse=sparse)
        self.head = nn.Linear(4 if self.bag else 12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).flatten(1))


@pytest.mark.parametrize("kind", ["embedding", "bag"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"base": "adamw", "refresh_every": 1},
        {"base": lambda params: torch.optim.Adagrad(params, weight_decay=0.1)},
        {
            "curvature_batch": "current",
            "refresh_every": 1,
            "estimator": "exact",
            "reweight": True,
            "distributed": "none",
        },
    ],
    ids=lambda options: str(sorted(options)),
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_sparse_gradients_train_as_dense_ones_do(kind: str, options: dict[str, Any], set_to_none: bool) -> None:
    def run(sparse: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Tables(kind, sparse).double()
        rate = None if callable(options.get("base")) else 0.05
        optimizer = seng.SENG(model, lr=rate, **{"exclude": ["table"], **options})  # type: ignore[arg-type]
        for step in range(5):
            optimizer.zero_grad(set_to_none)
            for part in range(1 + step % 2):  # two passes at every other step
                ids = torch.randint(10, (8, 3), generator=torch.Generator().manual_seed(10 * step + part))
                nn.functional.cross_entropy(model(ids), ids[:, 0] % 3).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for sparse, dense in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-9, atol=1e-12)


class Narrow(nn.Module):
    """A branch that has lost all units of some layers, as pruning can leave it."""

    def __init__(self, widths: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.main = nn.Linear(4, 2)
        pairs = zip((4, *widths), (*widths, 2), strict=True)
        self.branch = nn.Sequential(*(nn.Linear(d_in, d_out, bias=bias) for d_in, d_out in pairs))
        self.table, self.norm = nn.Embedding(3, widths[0]), nn.LayerNorm(widths[0])

    def forward(self, x: Tensor) -> Tensor:
        looked_up = self.norm(self.table((x[:, 0] > 0).long()))
        return self.main(x) + self.branch[1:](self.branch[0](x) + looked_up)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("widths", [(0,), (0, 0), (3, 0), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"base": "adamw"}, {"base": "muon"}, {"preset": "paper", "damping": 1.0}], ids=str
)
def test_layers_of_width_zero_change_nothing_for_the_rest(
    widths: tuple[int, ...], bias: bool, options: dict[str, Any]
) -> None:
    if options.get("base") == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is missing")
    torch.manual_seed(0)
    model = Narrow(widths, bias).double()
    optimizer = seng.SENG(model, lr=0.01, **options)
    named = [name for names in optimizer.preconditioner.layout.signature().values() for name in names]
    assert named == [name for name, p in model.named_parameters() if p.numel()]
    losses = []
    for step in range(15):
        optimizer.zero_grad()
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    optimizer.load_state_dict(optimizer.state_dict())


def test_warnings_say_each_reason_once_and_name_a_few() -> None:
    model = nn.Sequential(*(layer for _ in range(9) for layer in (nn.Linear(3, 3), Slope(), nn.GRUCell(3, 3))))
    with pytest.warns(UserWarning, match=r"gradient: 1\.weight, 4\.weight, 7\.weight and 6 more \(") as caught:
        seng.Preconditioner(model)
    message = str(caught[0].message)
    assert message.count("Slope is not supported") == message.count("GRUCell is not supported") == 1
    assert len(message) < 250
