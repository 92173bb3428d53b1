"""What a layer captured, as a shape and tensors."""

from __future__ import annotations

import pytest
import torch

from seng.per_sample import LAYER_KINDS, LayerGradients, Lookup, Product, Rows, Shape

N = 4
WIDTHS = [15, 3]  # sizes of the parameters behind each case


def cases() -> dict[str, LayerGradients]:
    torch.manual_seed(0)
    image = torch.randn(N, 1, 3, 6)
    patches = image[:, :, 0].unfold(2, 5, 1).transpose(0, 1)[..., None, :]  # overlapping in memory
    return {
        "product": Product(torch.randn(1, N, 2, 5), torch.randn(1, N, 2, 3), bias=True),
        "patches": Product(patches, torch.randn(1, N, 2, 3), bias=True),
        "lookup": Lookup(torch.randint(5, (N, 2)), torch.randn(N, 2, 3), 5),
        "rows": Rows.of((torch.randn(N, 15), torch.randn(N, 3))),
    }


@pytest.mark.parametrize("name", cases())
def test_shape_and_tensors_give_the_same_columns(name: str) -> None:
    io = cases()[name]
    assert [(tuple(t.shape), t.dtype) for t in io.tensors] == io.shape.specs(WIDTHS)
    shape = Shape.of_numbers(io.shape.numbers())
    assert shape == io.shape
    again = LAYER_KINDS[shape.kind].of_tensors(shape, [t.clone() for t in io.tensors])
    assert torch.equal(again.held(1.0, torch.float64).to_dense(), io.held(1.0, torch.float64).to_dense())


@pytest.mark.parametrize("name", cases())
def test_shape_counts_samples_positions_and_parameters(name: str) -> None:
    io = cases()[name]
    assert (io.shape.n, io.shape.s) == (io.n, io.shape.s)
    assert io.shape.p == sum(rows * columns for rows, columns in io.shapes)


def test_absent_layers_have_no_tensors() -> None:
    assert Shape().specs(WIDTHS) == []
    assert Shape.of_numbers(Shape().numbers()) == Shape()
