"""Summaries: truncation keeps directions within its bound, merging is a weighted sum of Fishers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.linalg import damped_power
from seng.per_sample import Rows, combine, merge, truncate
from seng.per_sample.truncated import TOLERANCE

from .samples import assert_near, dense_columns, flat, normal, product, vector

ROUNDING = 1e-10  # float64, beside the bound that truncation itself has


def decaying(n: int, p: int, rate: float) -> Rows:
    """U with singular values rate^k."""
    left, right = torch.linalg.qr(normal(p, p)).Q, torch.linalg.qr(normal(n, n, seed=1)).Q
    k = min(n, p)
    u = left[:, :k] * rate ** torch.arange(k, dtype=torch.float64) @ right[:, :k].T
    return Rows((u.T.contiguous(),), ((p, 1),))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 12),
    p=st.integers(2, 15),
    rate=st.floats(0.05, 0.9),
    damping=st.floats(1e-4, 10),
    power=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_truncation_changes_directions_within_its_bound(
    n: int, p: int, rate: float, damping: float, power: float
) -> None:
    factor = decaying(n, p, rate)
    u, g = factor.to_dense(), normal(p, seed=3)
    small, values = truncate(factor, torch.tensor(damping, dtype=torch.float64))
    kept = small.to_dense()
    whole, cut = (damped_power(x @ x.T, damping, power, g) for x in (u, kept))
    assert (whole - cut).norm() <= (power * TOLERANCE + ROUNDING) * damped_power(u @ u.T * 0, damping, power, g).norm()
    assert len(values) == kept.shape[1] <= n


def test_truncation_drops_what_the_damping_hides() -> None:
    factor = decaying(8, 8, 0.1)  # eigenvalues 1, 1e-2, 1e-4, ...
    counts = [len(truncate(factor, torch.tensor(damping, dtype=torch.float64))[1]) for damping in (1e-4, 1.0, 500.0)]
    assert counts == [4, 2, 1]


def test_truncated_columns_are_orthogonal_with_the_eigenvalues_returned() -> None:
    small, values = truncate(product(n=9).held(1.0, torch.float64), torch.tensor(0.1, dtype=torch.float64))
    assert_near(small.gram(), values.diag())
    assert (values.diff() >= 0).all()


def test_truncation_keeps_the_leading_ones_up_to_a_limit() -> None:
    factor = decaying(8, 8, 0.5)
    _, values = truncate(factor, torch.tensor(1e-9, dtype=torch.float64), limit=3)
    assert_near(values, torch.tensor([0.5**4, 0.5**2, 1.0], dtype=torch.float64))


def test_truncation_keeps_one_column_of_nothing() -> None:
    small, values = truncate(Rows((torch.zeros(3, 4),), ((4, 1),)), torch.tensor(0.1))
    assert small.n == len(values) == 1
    assert float(values.sum()) == 0.0


def test_combine_multiplies_by_weights(scratch: int) -> None:
    factor = product(n=5, groups=2).held(1.0, torch.float64)
    weights = normal(5, 3)
    assert_near(combine(factor, weights).to_dense(), factor.to_dense() @ weights)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
def test_merge_is_the_weighted_sum_of_fishers(weight: float, scratch: int) -> None:
    def fisher(u: Tensor) -> Tensor:
        return u @ u.T

    io = product(n=5)
    old = Rows.split(normal(4, 10, seed=8), io.shapes)
    new = io.held(1.0, torch.float64)
    merged = merge(old, new, weight)
    expected = weight * fisher(old.to_dense()) + (1 - weight) * fisher(dense_columns(io, 1.0))
    assert merged.n == 9
    assert_near(fisher(merged.to_dense()), expected)
    v = vector(merged)
    assert_near(merged.mv(v).square().sum(), flat(v) @ expected @ flat(v))
