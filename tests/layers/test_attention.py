"""Attention: its packed projections pass through, with the reason; everything around it is preconditioned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seng import SENG, Preconditioner, verify
from seng.testing import blocks_of, check_direction

N, S, D = 4, 3, 4
REASON = "nn.MultiheadAttention reads its projections without calling a layer"


class _Attending(nn.Module):
    def __init__(self, **options: bool):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True, **options)
        self.last = nn.Linear(D, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.attention(x, x, x)[0])


def _tokens() -> torch.Tensor:
    return torch.randn(N, S, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}])
def test_attention_passes_through_and_its_neighbours_match_oracle(options: dict[str, bool]):
    model, x = _Attending(**options).double(), _tokens()
    assert set(blocks_of(model)) == {"first", "last"}
    pre = Preconditioner(model)
    passed = pre.coverage().passed_through
    pre.close()
    assert set(passed) == {f"attention.{name}" for name, _ in model.attention.named_parameters()}
    assert set(passed.values()) == {REASON}
    check_direction(model, lambda: model(x).tanh().square().sum((1, 2)).mean(), N, power=0.5)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("trust", [None, 1.0])
def test_attention_gradients_move_at_the_pace_of_the_mean_damping_within_the_cap(power: float, trust: float | None):
    model, x = _Attending().double(), _tokens()
    pre = Preconditioner(model, power=power, scale="natural", trust=trust)
    model(x).tanh().square().sum((1, 2)).mean().backward()
    before = {name: p.grad.clone() for name, p in model.attention.named_parameters() if p.grad is not None}
    pre.step()
    damping = sum(stats.damping for stats in pre.stats().values()) / 2
    norm = float(torch.cat([g.flatten() for g in before.values()]).norm())
    pace = damping**-power
    pace = pace if trust is None else min(1.0, pace, trust * damping ** (0.5 - power) / norm)
    for name, p in model.attention.named_parameters():
        torch.testing.assert_close(p.grad, before[name] * pace)


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder_layer_matches_oracle_around_its_attention(norm_first: bool):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0, batch_first=True, norm_first=norm_first)
    model, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(S * D, 2)).double(), _tokens()
    assert set(blocks_of(model)) == {"0.linear1", "0.linear2", "0.norm1", "0.norm2", "2"}
    check_direction(model, lambda: model(x).tanh().square().sum(1).mean(), N, power=0.5)


def test_transformer_trains_and_verifies():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 6, dropout=0.1, batch_first=True)
    model, x = nn.Sequential(nn.Embedding(7, D), nn.TransformerEncoder(layer, 2), nn.Linear(D, 7)), torch.arange(6)
    ids = x.repeat(8, 1)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    report = verify(model, loss)
    assert report.ok, str(report)
    assert set(report.passed_through.values()) == {REASON}
    optimizer = SENG(model, lr=0.05)
    first = loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first
