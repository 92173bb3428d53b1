"""Plans of blocks that are more than one plain layer hold what training holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seng
from seng.errors import OptionError

SQUARES = 0.1  # share of the bytes: index tensors are int64, and small states are counted whole


class TiedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))


def held_bytes(pre: seng.Preconditioner) -> int:
    total = 0
    for curvature in pre._curvature.values():
        state = curvature.state
        total += curvature.nbytes() + sum(x.nbytes for x in vars(state).values() if isinstance(x, Tensor))
    return total


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tied": (TiedModel, lambda: torch.randint(0, 11, (16, 5)), {}),
    "expanded": (lambda: nn.Linear(12, 12), lambda: torch.randn(16, 40, 12), {"positions": "expand"}),
    "gaussian": (
        lambda: nn.Linear(12, 12), lambda: torch.randn(16, 40, 12),
        {"estimator": "explicit", "sketch": "gaussian", "sketch_size": 64},
    ),
    "gaussian in double precision": (
        lambda: nn.Linear(12, 12).double(), lambda: torch.randn(16, 40, 12, dtype=torch.float64),
        {"estimator": "explicit", "sketch": "gaussian", "sketch_size": 64},
    ),
    "sparse signs": (
        lambda: nn.Linear(12, 12), lambda: torch.randn(16, 40, 12),
        {"estimator": "explicit", "sketch": "sparse_sign", "sketch_size": 64},
    ),
    "two-sided gaussian": (
        lambda: nn.Linear(40, 30, bias=False), lambda: torch.randn(16, 20, 40),
        {"estimator": "implicit", "sketch": "gaussian", "sketch_size": 8, "rank": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_planned_bytes_are_those_held(case: str) -> None:
    build, draw, options = CASES[case]
    torch.manual_seed(0)
    model, x = build(), draw()
    planned = seng.plan(model, x, **options).nbytes
    pre = seng.Preconditioner(model, **options)
    model(x).square().mean().backward()
    pre.step()
    assert planned == pytest.approx(held_bytes(pre), rel=SQUARES)


def test_moving_average_is_planned_as_columns() -> None:
    model, x = nn.Linear(30, 20), torch.randn(16, 30)
    plain, merged = seng.plan(model, x).nbytes, seng.plan(model, x, ema=0.5).nbytes
    pre = seng.Preconditioner(model, ema=0.5)
    for _ in range(2):
        model.zero_grad()
        model(x).square().mean().backward()
        pre.step()
    assert plain < held_bytes(pre)
    assert held_bytes(pre) == pytest.approx(merged, rel=SQUARES)


def test_one_sample_refreshes_where_nothing_held_could_serve() -> None:
    model = nn.Linear(4, 3).double()
    pre = seng.Preconditioner(model, curvature_batch="current", refresh_every=1, power=1.0, trust=None)
    for n in (8, 1):
        x = torch.randn(n, 4, dtype=torch.float64)
        model.zero_grad()
        model(x).square().sum(1).mean().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        pre.step()
    damping = 0.1  # relative to the one eigenvalue g.g: d = damping / (1 + damping) g
    for p, g in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g * damping / (1 + damping))


def test_empty_micro_batch_adds_nothing() -> None:
    directions = []
    for sizes in ([6], [6, 0]):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        pre = seng.Preconditioner(model)
        x = torch.randn(6, 4, dtype=torch.float64)
        for part in x.split(sizes):
            (model(part).square().sum() / len(x)).backward()
        pre.step()
        directions.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*directions)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_reweight_is_a_bool(value: Any) -> None:
    with pytest.raises(OptionError, match="reweight out of range"):
        seng.Preconditioner(nn.Linear(2, 2), reweight=value)
