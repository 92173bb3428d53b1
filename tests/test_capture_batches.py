"""What counts as one batch: accumulation, activation checkpointing, and other passes in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seng import SENG, Preconditioner
from seng.testing import (
    EXACT,
    blocks_of,
    dense_direction,
    flat_gradient,
    loop_gradients,
    relative_error,
)

from .capturing import N, assert_same, directions, loss_of, mlp, random, uses

# -- accumulation and checkpointing -------------------------------------------------------------------------------


class _Checkpointed(nn.Module):
    """Recomputes its body in backward; the first and last layers may stay outside."""

    def __init__(self, reentrant: bool | None, whole: bool):
        super().__init__()
        self.inner = mlp()
        self.norm = nn.BatchNorm1d(3, affine=False).double()
        self.reentrant, self.whole = reentrant, whole

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        body = self.inner if self.whole else self.inner[1:4]
        if not self.whole:
            x = self.inner[0](x)
        elif self.reentrant:
            x = x.requires_grad_()  # a reentrant checkpoint of data alone would have no gradient
        x = body(x) if self.reentrant is None else checkpoint(body, x, use_reentrant=self.reentrant)
        return x if self.whole else self.inner[4](x)


@pytest.mark.parametrize("splits", [[N], [2, 2, 2], [1, 3, 2]], ids=str)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(reentrant: bool, whole: bool, splits: list[int]):
    x = random(1, N, 3)
    results = []
    for mode in (reentrant, None):
        model = _Checkpointed(mode, whole).eval()

        def run(model: nn.Module = model) -> None:
            for part in x.split(splits):
                loss_of(model, part, total=N).backward()

        results.append(directions(model, run))
    assert_same(results[0], results[1])


def test_nested_checkpoints_change_nothing():
    model, x = mlp(), random(1, N, 3)

    def inner(x: Tensor) -> Tensor:
        return checkpoint(model[2:4], model[:2](x), use_reentrant=False)  # type: ignore[return-value]

    def run() -> None:
        y = model[4](checkpoint(inner, x, use_reentrant=False))
        (y.tanh() - x[:, :1]).square().sum().div(N).backward()

    assert_same(directions(model, run), directions(model, lambda: loss_of(model, x).backward()))


@pytest.mark.parametrize(
    "options", [{}, {"power": 1.0}, {"loss_reduction": "sum"}, {"estimator": "truncated"}], ids=str
)
@pytest.mark.parametrize("splits", [[1] * N, [3, 3], [1, 4, 1]], ids=str)
def test_accumulated_micro_batches_are_one_batch(splits: list[int], options: dict[str, Any]):
    model, x, options = mlp(), random(1, N, 3), dict(options)
    total = 1 if options.get("loss_reduction") == "sum" else N

    def run() -> None:
        for part in x.split(splits):
            loss_of(model, part, total).backward()

    def outcome(run: Callable[[], object]) -> dict[str, Tensor]:
        model.zero_grad()
        pre = Preconditioner(model, **{"estimator": "exact", **options})  # type: ignore[arg-type]
        run()
        pre.step()
        assert all(stats.samples == N for stats in pre.stats().values())
        pre.close()
        return {name: flat_gradient(block) for name, block in blocks_of(model).items()}

    assert_same(outcome(run), outcome(lambda: loss_of(model, x, total).backward()), EXACT)


class _Reader(nn.Module):
    """A model of sequences of any length, with a layer used at two lengths, a norm and a convolution."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.convolution = nn.Conv1d(4, 4, 2, groups=2)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.twice(self.embed(ids)).tanh())
        x = self.convolution(x.mT).relu_().mT
        return self.head(self.twice(x).tanh().mean(1))


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_micro_batches_of_different_lengths_match_oracle(power: float):
    torch.manual_seed(0)
    model = _Reader().double()
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(7, shape, generator=generator) for shape in ((2, 5), (3, 3), (1, 8))]
    samples = [ids[i : i + 1] for ids in parts for i in range(len(ids))]
    total = len(samples)

    def run() -> None:
        for ids in parts:
            (model(ids).square().sum() / total).backward()

    rows = {
        name: loop_gradients(lambda i: model(samples[i]).square().sum(), block.parameters, total)
        for name, block in blocks_of(model).items()
    }
    got = directions(model, run, power=power, trust=None, scale="natural")
    expected = {name: dense_direction(u, u.mean(0), damping=0.1, power=power, natural=True) for name, u in rows.items()}
    assert_same(got, expected, EXACT)


def test_micro_batches_that_skip_a_layer_match_oracle():
    model = nn.ModuleDict({"stem": nn.Linear(3, 3), "left": nn.Linear(3, 2), "right": nn.Linear(3, 2)}).double()
    x = random(1, N, 3)
    heads = ["left", "left", "right", "left", "right", "right"]

    def sample(i: int) -> Tensor:
        return model[heads[i]](model["stem"](x[i : i + 1]).tanh()).square().sum()

    def run() -> None:
        for i in range(N):
            (sample(i) / N).backward()

    got = directions(model, run, trust=None, scale="natural")
    for name, block in blocks_of(model).items():
        rows = loop_gradients(sample, block.parameters, N)
        # relative damping: trace over the samples of the whole batch, as everywhere
        expected = dense_direction(rows, rows.mean(0), damping=0.1, power=0.5, natural=True)
        assert relative_error(got[name], expected) <= EXACT, name


# -- other passes in between --------------------------------------------------------------------------------------


def _forward_only(model: nn.Module, x: Tensor) -> None:
    model(x)


def _no_grad(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def _inference(model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def _evaluation(model: nn.Module, x: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()


def _evaluation_with_grad(model: nn.Module, x: Tensor) -> None:
    model.eval()
    model(x)
    model.train()


def _evaluation_of_inputs(model: nn.Module, x: Tensor) -> None:
    model.eval()
    x = x.clone().requires_grad_()
    torch.autograd.grad(model(x).sum(), x)
    model.train()


OTHER_PASSES = [_forward_only, _no_grad, _inference, _evaluation, _evaluation_with_grad, _evaluation_of_inputs]


@pytest.mark.parametrize("other", OTHER_PASSES, ids=lambda other: other.__name__)
@pytest.mark.parametrize("moment", ["before", "after forward", "between", "after"])
def test_other_passes_leave_no_trace(other: Callable[[nn.Module, Tensor], None], moment: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).double()
    x, elsewhere = random(1, N, 3), random(2, 9, 3)

    def run(disturb: bool = True) -> None:
        for k, part in enumerate(x.split(N // 2)):
            if disturb and moment == ("before" if k == 0 else "between"):
                other(model, elsewhere)
            loss = loss_of(model, part, N)
            if disturb and moment == "after forward":
                other(model, elsewhere)
            loss.backward()
        if disturb and moment == "after":
            other(model, elsewhere)

    assert_same(directions(model, run), directions(model, lambda: run(disturb=False)))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("through", ["optimizer", "model"])
def test_cleared_gradients_clear_what_was_captured(set_to_none: bool, through: str):
    class Scaled(nn.Module):
        """Its scale has a gradient before any layer does."""

        def __init__(self):
            super().__init__()
            self.inner, self.scale = mlp(), nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale

    model, x, gone = Scaled(), random(1, N, 3), random(2, 4, 3)

    def run() -> None:
        loss_of(model, gone).backward()
        if through == "model":
            model.zero_grad(set_to_none)
        else:
            torch.optim.SGD(model.parameters(), lr=0.1).zero_grad(set_to_none)
        for part in x.split(2):
            loss_of(model, part, N).backward()

    assert_same(directions(model, run), directions(model, lambda: loss_of(model, x).backward()))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_seng_clears_captured_and_gradients_alike(set_to_none: bool):
    model, x = mlp(), random(1, N, 3)
    optimizer = SENG(model, estimator="exact")
    loss_of(model, x[:4]).backward()
    optimizer.zero_grad(set_to_none)
    assert not uses()
    assert all(p.grad is None if set_to_none else not p.grad.any() for p in model.parameters())  # type: ignore[union-attr]
    loss_of(model, x).backward()
    optimizer.step()
    assert {stats.samples for stats in optimizer.stats().values()} == {N}
    optimizer.close()


def test_ragged_last_batches_are_taken_as_they_come():
    model, x = mlp(), random(1, N + 4, 3)
    pre = Preconditioner(model, refresh_every=1, estimator="exact")
    for part in x.split(4):
        model.zero_grad()
        loss_of(model, part).backward()
        pre.step()
        assert {stats.samples for stats in pre.stats().values()} == {len(part)}
    pre.close()
