"""Half of a matrix as a vector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seng.linalg import pack_triangle, triangle_size, unpack_triangle


@given(n=st.integers(1, 9), symmetric=st.booleans())
def test_triangle_there_and_back_is_the_matrix(n: int, symmetric: bool) -> None:
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    matrix = x + x.T if symmetric else x.tril()
    packed = pack_triangle(matrix)
    assert packed.shape == (triangle_size(n),)
    assert torch.equal(unpack_triangle(packed, n, symmetric), matrix)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_triangle_is_half_and_the_diagonal(n: int) -> None:
    assert 2 * triangle_size(n) == n * n + n
