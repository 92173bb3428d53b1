"""Linear layers against the dense oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng.layers import LayerCall
from seng.layers.linear import linear
from seng.per_sample import Product
from seng.testing import check_layer

from .draws import batches, examples, option_sets, seeds, sizes


@examples(40)
@given(n=batches, middle=st.lists(sizes, max_size=3), d=st.tuples(sizes, sizes), bias=st.booleans(),
       options=option_sets(), seed=seeds)  # fmt: skip
def test_linear_matches_oracle_with_any_leading_dimensions(
    n: int, middle: list[int], d: tuple[int, int], bias: bool, options: dict[str, Any], seed: int
):
    d_in, d_out = d
    check_layer(lambda: nn.Linear(d_in, d_out, bias=bias), lambda: torch.randn(n, *middle, d_in), seed=seed, **options)


@examples(20)
@given(
    frozen=st.sampled_from(["weight", "bias"]), middle=st.lists(sizes, max_size=2), options=option_sets(), seed=seeds
)
def test_linear_matches_oracle_with_a_frozen_parameter(
    frozen: str, middle: list[int], options: dict[str, Any], seed: int
):
    def module() -> nn.Module:
        layer = nn.Linear(3, 2)
        getattr(layer, frozen).requires_grad_(False)
        return layer

    check_layer(module, lambda: torch.randn(4, *middle, 3), seed=seed, **options)


@examples(10)
@given(options=option_sets(), seed=seeds)
def test_linear_matches_oracle_on_inputs_that_are_not_contiguous(options: dict[str, Any], seed: int):
    check_layer(lambda: nn.Linear(3, 2), lambda: torch.randn(5, 3, 4).mT, seed=seed, **options)
    check_layer(lambda: nn.Linear(3, 2), lambda: torch.randn(1, 2, 3).expand(4, 2, 3), seed=seed, **options)


def test_linear_takes_a_vector_as_one_sample():
    layer, x, g = nn.Linear(3, 2), torch.randn(3), torch.randn(2)
    io = linear(layer, LayerCall((x,), {}, (g,), ("weight", "bias")))["weight", "bias"]
    assert isinstance(io, Product)
    assert (io.n, io.shape.s, io.shapes) == (1, 1, ((2, 3), (2, 1)))
    bias = linear(layer, LayerCall((x,), {}, (g,), ("bias",)))["bias"]
    torch.testing.assert_close(bias, g[None], rtol=0, atol=0)


@pytest.mark.parametrize("wanted", [("weight", "bias"), ("weight",)])
def test_linear_has_the_shapes_of_its_parameters(wanted: tuple[str, ...]):
    layer = nn.Linear(3, 2)
    io = linear(layer, LayerCall((torch.randn(4, 5, 3),), {}, (torch.randn(4, 5, 2),), wanted))[wanted]
    elements = [rows * columns for rows, columns in io.shapes]
    assert elements == [getattr(layer, name).numel() for name in wanted]
