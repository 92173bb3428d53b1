"""Small models, and the directions of whatever passes a test runs through them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seng import Preconditioner
from seng.capture import Use
from seng.testing import blocks_of, flat_gradient, relative_error

N = 6
SAME = 1e-12  # float64 rounding of sums in another order


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def loss_of(model: nn.Module, x: Tensor, total: int | None = None) -> Tensor:
    """Sum over the samples of x, divided by the size of the whole batch."""
    return (model(x).tanh() - x.flatten(1)[:, :1]).square().sum() / (total or len(x))


def directions(model: nn.Module, run: Callable[[], object], **options: Any) -> dict[str, Tensor]:
    """Run forward and backward passes, take one step, and return what is left in ``.grad``."""
    model.zero_grad()
    pre = Preconditioner(model, estimator="exact", **options)
    try:
        run()
        pre.step()
    finally:
        pre.close()
    return {name: flat_gradient(block) for name, block in blocks_of(model).items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = SAME) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert relative_error(got[name], value) <= tolerance, name


def uses() -> list[Use]:
    gc.collect()  # other tests leave graphs behind whose cycles are collected at any time
    return [item for item in gc.get_objects() if type(item) is Use]
