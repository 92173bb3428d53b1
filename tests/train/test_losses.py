"""Each loss is the mean over samples that it says, and refuses targets of another kind."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seng.apps.train.config import LossConfig
from seng.apps.train.losses import build_loss
from seng.errors import SengError

ROUNDING = 1e-12  # float64, sums of at most some hundred terms


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@given(n=st.integers(1, 4), classes=st.integers(1, 5), positions=st.integers(0, 6), smoothing=st.floats(0, 1))
def test_cross_entropy_is_the_mean_over_samples_and_positions(n, classes, positions, smoothing):
    shape = (positions,) if positions else ()
    outputs, targets = _draw(n, classes, *shape), _draw(n, *shape).abs().mul(100).long() % classes
    got = build_loss(LossConfig(label_smoothing=smoothing))(outputs, targets)
    flat = outputs.transpose(1, -1).reshape(-1, classes) if positions else outputs
    terms = []
    for scores, target in zip(flat.tolist(), targets.flatten().tolist(), strict=True):
        log_sum = math.log(sum(math.exp(score) for score in scores))
        wanted = [smoothing / classes + (1 - smoothing) * (index == target) for index in range(classes)]
        terms.append(sum(share * (log_sum - score) for share, score in zip(wanted, scores, strict=True)))
    assert got.item() == pytest.approx(sum(terms) / len(terms), rel=ROUNDING, abs=ROUNDING)


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_half_squared_error_is_a_mean_over_samples_of_sums(shape):
    outputs, targets = _draw(*shape), _draw(*shape, 1).squeeze(-1).flip(0)
    expected = sum(
        0.5 * (a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True)
    )
    got = build_loss(LossConfig("half-squared-error"))(outputs, targets)
    assert got.item() == pytest.approx(expected / shape[0], rel=ROUNDING)


def test_half_squared_error_of_half_precision_outputs_is_summed_in_float32():
    outputs = torch.full((1, 1000), 100.0, dtype=torch.float16)  # a sum of squares of 1e7, far beyond float16
    loss = build_loss(LossConfig("half-squared-error"))(outputs, torch.zeros(1, 1000))
    assert loss.item() == 5e6


@pytest.mark.parametrize(
    ("name", "targets", "match"),
    [
        ("cross-entropy", torch.rand(3, 4), "no classes.*float32 of shape.*Choose loss.name=half-squared-error"),
        ("half-squared-error", torch.zeros(3, dtype=torch.long), "do not fit.*shape \\(3, 4\\), got 'torch.int64"),
        ("half-squared-error", torch.zeros(4), "do not fit.*shape \\(4,\\)"),
        ("half-squared-error", torch.zeros(3, 4, dtype=torch.long), "do not fit.*int64"),
    ],
)
def test_loss_refuses_targets_of_another_kind(name: str, targets: Tensor, match: str):
    with pytest.raises(SengError, match=match):
        build_loss(LossConfig(name))(torch.zeros(3, 4), targets)


def test_unknown_loss_lists_the_known():
    with pytest.raises(SengError, match="unknown loss.*cross-entropy.*Did you mean 'half-squared-error'"):
        build_loss(LossConfig("half-square-error"))
