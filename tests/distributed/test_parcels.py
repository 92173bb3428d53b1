"""What a layer captured, as integers and tensors."""

from __future__ import annotations

import pytest
import torch

from seng.distributed.parcels import Frame, frame_of, io_of, shape_only, silent, tensors_of
from seng.estimators import Operator
from seng.per_sample import LayerGradients, Lookup, Product, Rows, join_batches

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
def test_frame_and_tensors_give_the_same_factor(name: str) -> None:
    io = cases()[name]
    frame, tensors = frame_of(io), tensors_of(io)
    assert [(tuple(t.shape), t.dtype) for t in tensors] == frame.specs(WIDTHS)
    again = io_of(Frame(*frame.numbers()), [t.clone() for t in tensors])
    got, expected = (Operator().build(x, 1.0, torch.float64, torch.default_generator).to_dense() for x in (again, io))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", cases())
def test_silent_samples_are_zero_columns(name: str) -> None:
    io = cases()[name]
    quiet = silent(frame_of(io), 3, WIDTHS, torch.device("cpu"))
    joined = join_batches([io, quiet])
    u = Operator().build(joined, 1.0, torch.float64, torch.default_generator).to_dense()
    assert u.shape[1] == N + 3
    assert not u[:, N:].any()
    assert u[:, :N].any()


@pytest.mark.parametrize("name", cases())
def test_shapes_alone_hold_no_data(name: str) -> None:
    io = cases()[name]
    empty = shape_only(frame_of(io), WIDTHS)
    assert empty.shapes == io.shapes
    assert (empty.n, empty.positions) == (io.n, io.positions)
    assert all(t.is_meta for t in tensors_of(empty))


def test_absent_layers_have_no_tensors() -> None:
    assert Frame().specs(WIDTHS) == []
