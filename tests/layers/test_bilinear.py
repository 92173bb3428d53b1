"""Bilinear layers against the dense oracle."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng.testing import check_layer

from .draws import examples, option_sets, seeds, sizes


@examples(30)
@given(middle=st.lists(st.integers(1, 3), max_size=2), d=st.tuples(sizes, sizes, st.integers(1, 3)), bias=st.booleans(),
       frozen=st.booleans(), options=option_sets(), seed=seeds)  # fmt: skip
def test_bilinear_matches_oracle_with_any_leading_dimensions(
    middle: list[int], d: tuple[int, int, int], bias: bool, frozen: bool, options: dict[str, Any], seed: int
):
    def module() -> nn.Module:
        layer = nn.Bilinear(*d, bias=bias)
        layer.weight.requires_grad_(not (frozen and bias))
        return layer

    check_layer(module, lambda: tuple(torch.randn(5, *middle, k) for k in d[:2]), seed=seed, **options)
