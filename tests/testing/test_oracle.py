"""The two oracles agree, and dense algebra is what it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from seng.testing import copy_gradients, dense_direction, loop_gradients, relative_error

ROUNDING = 1e-12  # two orders of summation in float64
N = 4


class _Residual(nn.Module):
    """Uses one layer twice, a norm, and a convolution; samples do not see each other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 3, 2)
        self.norm = nn.GroupNorm(1, 3)
        self.twice = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).tanh().mT
        return self.head(self.twice(self.twice(x).tanh()).sum(1))


def _batch(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_copies_match_loop_on_models_without_batch_statistics(seed: int):
    torch.manual_seed(seed)
    model, x = _Residual().double(), _batch(seed, N, 2, 4)
    labels = torch.arange(N) % 2
    parameters = list(model.parameters())
    loop = loop_gradients(lambda i: F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1]), parameters, N)
    copies = copy_gradients(model, lambda: F.cross_entropy(model(x), labels), parameters, N)
    summed = copy_gradients(model, lambda: F.cross_entropy(model(x), labels, reduction="sum"), parameters, N)
    assert relative_error(copies * N, loop) <= ROUNDING
    assert relative_error(summed, loop) <= ROUNDING


def test_copies_match_loop_on_tied_embeddings():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids).tanh())

    torch.manual_seed(0)
    model, ids = Tied().double(), torch.tensor([[0, 1], [2, 2], [4, 1]])
    tied = list(model.parameters())
    assert len(tied) == 1
    loop = loop_gradients(lambda i: model(ids[i : i + 1]).square().sum(), tied, 3)
    copies = copy_gradients(model, lambda: model(ids).square().sum(), tied, 3)
    assert relative_error(copies, loop) <= ROUNDING


@pytest.mark.parametrize("training", [True, False])
def test_copies_add_up_to_the_gradient_with_batch_statistics(training: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double().train(training)
    x = _batch(1, N, 3)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rows = copy_gradients(model, lambda: model(x).square().mean(), list(model.parameters()), N)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name])
    assert all("forward" not in vars(module) for module in model.modules())
    model(x).square().mean().backward()
    grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert relative_error(rows.sum(0), grad) <= ROUNDING


def test_copies_refuse_modules_that_hold_samples_elsewhere():
    model = nn.Linear(3, 2).double()
    with pytest.raises(ValueError, match="oracle: expected 4 samples in dimension 0, got 2"):
        copy_gradients(model, lambda: model(_batch(0, 2, N, 3)).sum(), list(model.parameters()), N)


def test_loop_gives_zeros_for_parameters_out_of_reach():
    layer, idle = nn.Linear(2, 1).double(), nn.Linear(2, 1).double()
    rows = loop_gradients(lambda i: layer(_batch(i, 2)).sum(), [*layer.parameters(), *idle.parameters()], 2)
    assert rows[:, :3].any()
    assert not rows[:, 3:].any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), damping=st.floats(0.01, 10), natural=st.booleans(), relative=st.booleans())
def test_dense_direction_solves_the_damped_system(seed: int, damping: float, natural: bool, relative: bool):
    rows, grad = _batch(seed, N, 6), _batch(seed + 1, 6)
    fisher = rows.T @ rows / N
    lam = damping * float(fisher.trace()) / N if relative else damping
    system = fisher + lam * torch.eye(6, dtype=torch.float64)

    def direction(power: float, vector: Tensor) -> Tensor:
        d = dense_direction(rows, vector, damping=damping, power=power, relative=relative, natural=natural)
        return d if natural else d / lam**power

    accuracy = ROUNDING * float(torch.linalg.cond(system))
    assert relative_error(system @ direction(1.0, grad), grad) <= accuracy
    assert relative_error(system @ direction(0.5, direction(0.5, grad)), grad) <= accuracy
    assert relative_error(direction(0.3, direction(0.7, grad)), direction(1.0, grad)) <= accuracy


def test_dense_direction_caps_the_trust_quadratic():
    rows, grad = _batch(0, N, 6), _batch(1, 6)
    free = dense_direction(rows, grad, damping=0.1, natural=True)
    capped = dense_direction(rows, grad, damping=0.1, natural=True, trust=0.25)
    assert relative_error(capped, free * 0.25 / float(grad @ free) ** 0.5) <= ROUNDING
    loose = dense_direction(rows, grad, damping=0.1, natural=True, trust=1e6)
    assert torch.equal(loose, free)
