"""Low-rank factors of products: exact where the rank suffices, near the truncated SVD elsewhere."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.linalg import low_rank_products

ACCURACY = 1e-10  # float64, two orthogonalisations and one small decomposition
NEAR_OPTIMAL = 1.02  # error over the truncated SVD's, one power iteration and 4 extra directions, seeded


def products(n: int, s: int, d_in: int, d_out: int, rank: int) -> tuple[Tensor, Tensor]:
    """Inputs and output gradients whose products have the given rank."""
    generator = torch.Generator().manual_seed(n + 7 * s + 11 * d_in + 13 * d_out + rank)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(n, s, rank) @ draw(n, rank, d_in), draw(n, s, d_out)


def multiply(a: Tensor, g: Tensor) -> Tensor:
    return g.mT @ a


@settings(max_examples=30, deadline=None)
@given(s=st.integers(3, 9), d_in=st.integers(2, 8), d_out=st.integers(2, 8), rank=st.integers(1, 2))
def test_low_rank_is_exact_where_the_rank_suffices(s: int, d_in: int, d_out: int, rank: int) -> None:
    a, g = products(4, s, d_in, d_out, rank)
    low_a, low_g = low_rank_products(a, g, rank, torch.Generator().manual_seed(0))
    assert low_a.shape == (4, rank, d_in)
    assert low_g.shape == (4, rank, d_out)
    full = multiply(a, g)
    assert (multiply(low_a, low_g) - full).norm() <= ACCURACY * full.norm()


@settings(max_examples=30, deadline=None)
@given(s=st.integers(1, 5), d_in=st.integers(1, 6), d_out=st.integers(1, 6))
def test_low_rank_is_exact_at_full_rank(s: int, d_in: int, d_out: int) -> None:
    a, g = products(3, s, d_in, d_out, rank=6)
    low_a, low_g = low_rank_products(a, g, 6, torch.Generator().manual_seed(0))
    assert low_a.shape[1] == min(s, d_in, d_out)
    full = multiply(a, g)
    assert (multiply(low_a, low_g) - full).norm() <= ACCURACY * full.norm()


def test_low_rank_is_near_the_truncated_svd() -> None:
    a, g = products(8, 30, 24, 20, rank=24)
    decay = 0.7 ** torch.arange(30, dtype=torch.float64)
    full = multiply(a * decay[:, None], g)
    for rank in (1, 3, 6):
        low_a, low_g = low_rank_products(a * decay[:, None], g, rank, torch.Generator().manual_seed(0))
        errors = (multiply(low_a, low_g) - full).flatten(1).norm(dim=1)
        best = torch.linalg.svdvals(full)[:, rank:].norm(dim=1)
        assert (errors >= best * (1 - ACCURACY)).all()
        assert (errors <= best * NEAR_OPTIMAL).all()


def test_low_rank_passes_through_where_it_saves_nothing() -> None:
    a, g = products(3, 4, 6, 6, rank=6)
    low_a, low_g = low_rank_products(a, g, 4, torch.Generator())
    assert low_a is a
    assert low_g is g


def test_low_rank_follows_its_generator() -> None:
    a, g = products(3, 9, 9, 9, rank=9)
    one, same, other = (low_rank_products(a, g, 2, torch.Generator().manual_seed(k))[0] for k in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
