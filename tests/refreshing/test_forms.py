"""Forms in which samples travel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from seng.blocks import Block
from seng.capture import Capture
from seng.config import Options
from seng.curvature import Pool, factor_of, member_io
from seng.estimators import Choice, LowRank, Operator
from seng.estimators.paper_code import ReleasedLowRank, ReleasedRows
from seng.grouping import lay_out
from seng.per_sample import LayerGradients, PerSampleGradients
from seng.refreshing.forms import CAPTURED, LOW_RANK, ROWS, form_of, parcel, parts_in_form, pooled, received, specs_of

EXACT = 1e-12  # float64: products in another order
OPTIONS = Options()


def captured(module: nn.Module, x: torch.Tensor) -> tuple[Block, dict[int, LayerGradients]]:
    module = module.double()
    (block,) = lay_out(module, OPTIONS, "test").blocks.values()
    capture = Capture([member.watched for member, _ in block.members])
    module(x.double()).pow(2).sum().backward()
    return block, member_io(block, capture.collect().layers)


def conv() -> tuple[Block, dict[int, LayerGradients]]:
    torch.manual_seed(0)
    return captured(nn.Conv1d(2, 3, 3), torch.randn(5, 2, 20))


def linear() -> tuple[Block, dict[int, LayerGradients]]:
    torch.manual_seed(0)
    return captured(nn.Linear(40, 30), torch.randn(5, 40))


def plainly(block: Block, own: dict[int, LayerGradients]) -> PerSampleGradients:
    choice = Choice(Operator())
    parts = parts_in_form(block, own, CAPTURED, choice, torch.Generator())
    return factor_of(block, parts, choice, Pool(5), OPTIONS, 0)[0]


@pytest.mark.parametrize("make", [conv, linear])
@pytest.mark.parametrize("form", [CAPTURED, ROWS])
def test_form_keeps_the_factor(make: Callable[[], tuple[Block, dict[int, LayerGradients]]], form: str) -> None:
    block, own = make()
    choice = Choice(Operator())
    parts = parts_in_form(block, own, form, choice, torch.Generator())
    announced = parcel(block, {k: io.shape for k, io in own.items()}, form, choice)
    tensors = [t for io, _ in parts for t in io.tensors]
    assert [(tuple(t.shape), t.dtype) for t in tensors] == specs_of(block, announced)
    arrived = received(block, announced, tensors)
    got, _ = factor_of(block, arrived, choice, Pool(5), OPTIONS, 0)
    expected = plainly(block, own)
    torch.testing.assert_close(got.to_dense(), expected.to_dense(), rtol=EXACT, atol=EXACT)


def test_low_rank_form_at_full_rank_keeps_the_factor() -> None:
    block, own = conv()
    choice = Choice(LowRank(3, rows=100))  # no product of a sample has a rank above d_out = 3
    parts = parts_in_form(block, own, LOW_RANK, choice, torch.Generator().manual_seed(0))
    announced = parcel(block, {k: io.shape for k, io in own.items()}, LOW_RANK, choice)
    tensors = [t for io, _ in parts for t in io.tensors]
    assert [(tuple(t.shape), t.dtype) for t in tensors] == specs_of(block, announced)
    got, _ = factor_of(block, received(block, announced, tensors), choice, Pool(5), OPTIONS, 0)
    expected = plainly(block, own)
    torch.testing.assert_close(got.to_dense(), expected.to_dense(), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(got.gram(), expected.gram(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("make", "choice", "positions", "expected"),
    [
        (conv, Choice(Operator()), "sum", ROWS),  # 21 parameters, 18 positions of 9 numbers
        (linear, Choice(Operator()), "sum", CAPTURED),
        (conv, Choice(LowRank(1)), "sum", LOW_RANK),
        (conv, Choice(ReleasedLowRank(1)), "sum", LOW_RANK),
        (conv, Choice(ReleasedRows()), "sum", ROWS),
        (conv, Choice(Operator()), "expand", CAPTURED),
    ],
)
def test_form_is_the_one_with_the_fewest_bytes(
    make: Callable[[], tuple[Block, dict[int, LayerGradients]]], choice: Choice, positions: str, expected: str
) -> None:
    block, own = make()
    by_rank = [{k: io.shape for k, io in own.items()}, {}]
    assert form_of(block, by_rank, choice, positions) == expected


class Tied(nn.Module):
    """A table that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x.long()))


def test_pooled_samples_of_tied_layers_join_part_by_part() -> None:
    torch.manual_seed(0)
    block, own = captured(Tied(), torch.randint(6, (5, 3)))
    assert form_of(block, [{k: io.shape for k, io in own.items()}], Choice(Operator()), "sum") == CAPTURED
    whole = parts_in_form(block, own, CAPTURED, Choice(Operator()), torch.Generator())
    first_alone = whole[:1]  # a rank that used the table alone
    parts = pooled(block, [whole, (), first_alone])
    u = factor_of(block, parts, Choice(Operator()), Pool(10), OPTIONS, 0)[0].to_dense()
    scale = 10**0.5
    expected = [
        factor_of(block, own_parts, Choice(Operator()), Pool(1), OPTIONS, 0)[0].to_dense() * scale
        for own_parts in (whole, first_alone)
    ]
    torch.testing.assert_close(u, torch.cat(expected, 1), rtol=EXACT, atol=EXACT)
