"""Gram matrices equal the dense product, are symmetric and positive semidefinite, in blocks and chunks alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.linalg import gram, gram_of_products, gram_of_rows

ROUNDING = 1e-12  # float64 sums of at most a few thousand terms, in another order


def dense_products(a: Tensor, g: Tensor, bias: bool) -> Tensor:
    """Per-sample gradients G^T A written out, [n, p]."""
    a = torch.cat([a, torch.ones_like(a[..., :1])], 2) if bias else a
    return (g.mT @ a).flatten(1)


def random_products(n: int, s: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + 10 * s + 100 * d_in + 1000 * d_out)
    a = torch.randn(n, s, d_in, generator=generator, dtype=torch.float64)
    return a, torch.randn(n, s, d_out, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), p=st.integers(1, 30))
def test_gram_of_rows_matches_dense_product(n: int, p: int) -> None:
    rows = torch.randn(n, p, generator=torch.Generator().manual_seed(n * p), dtype=torch.float64)
    k = gram_of_rows(rows)
    torch.testing.assert_close(k, torch.einsum("ip,jp->ij", rows, rows), rtol=ROUNDING, atol=ROUNDING * p)
    torch.testing.assert_close(k, k.T, rtol=ROUNDING, atol=ROUNDING * p)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    s=st.integers(1, 4),
    d_in=st.integers(1, 5),
    d_out=st.integers(1, 5),
    bias=st.booleans(),
    scratch=st.sampled_from([1, 64, 2**24]),
)
def test_gram_of_products_matches_dense_product(
    n: int, s: int, d_in: int, d_out: int, bias: bool, scratch: int
) -> None:
    a, g = random_products(n, s, d_in, d_out)
    rows = dense_products(a, g, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "SCRATCH", scratch)
        k = gram_of_products(a, g, bias)
    torch.testing.assert_close(k, rows @ rows.T, rtol=ROUNDING, atol=1e2 * ROUNDING)


@pytest.mark.parametrize("s", [1, 3])
def test_gram_of_products_is_symmetric_and_positive_semidefinite(s: int) -> None:
    a, g = random_products(20, s, 2, 2)  # rank 4 at most: the smallest eigenvalues are zero up to rounding
    k = gram_of_products(a, g, bias=False)
    values = torch.linalg.eigvalsh(k)
    torch.testing.assert_close(k, k.T, rtol=ROUNDING, atol=ROUNDING)
    assert values[0] >= -ROUNDING * values[-1]
    assert values[-4] > ROUNDING * values[-1]


@pytest.mark.parametrize("s", [1, 3])
def test_gram_of_products_leaves_its_arguments_alone(s: int) -> None:
    a, g = random_products(6, s, 3, 2)
    before = a.clone(), g.clone()
    gram_of_products(a, g, bias=True)
    assert torch.equal(a, before[0])
    assert torch.equal(g, before[1])
