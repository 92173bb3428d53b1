"""Joining and expanding what layers captured: columns of U add over uses, stand side by side over batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seng.estimators import Operator
from seng.per_sample import (
    LayerGradients,
    Lookup,
    Product,
    Rows,
    join_batches,
    join_uses,
)

ROUNDING = 1e-12  # float64, a few sums
DRAWS = 2000
WHOLE = 3.0  # standard errors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(n: int, s: int, seed: int = 0) -> Product:
    return Product(normal(2, n, s, 3, seed=seed), normal(2, n, s, 4, seed=seed + 1), True)


def lookup(n: int, s: int, seed: int = 0) -> Lookup:
    ids = torch.randint(0, 6, (n, s), generator=torch.Generator().manual_seed(seed))
    return Lookup(ids, normal(n, s, 2, seed=seed), 6)


def rows(n: int, s: int, seed: int = 0) -> Rows:
    return Rows.of((normal(n, 4, seed=seed), normal(n, 2, seed=seed + 1)))


KINDS = {"product": product, "lookup": lookup, "rows": rows}
each_kind = pytest.mark.parametrize("kind", KINDS)


def columns(io: LayerGradients) -> Tensor:
    return Operator().build(io, 1.0, torch.float64, torch.Generator()).to_dense()


@each_kind
def test_uses_add_up_sample_by_sample(kind: str) -> None:
    uses = [KINDS[kind](5, s, seed=k) for k, s in enumerate((1, 3, 2))]
    torch.testing.assert_close(columns(join_uses(uses)), sum(map(columns, uses)), rtol=ROUNDING, atol=ROUNDING)


@each_kind
def test_batches_stand_side_by_side(kind: str) -> None:
    batches = [KINDS[kind](n, s, seed=n) for n, s in ((2, 1), (4, 3), (1, 2))]
    joined = join_batches(batches)
    assert joined.n == 7
    torch.testing.assert_close(columns(joined), torch.cat([columns(b) for b in batches], 1), rtol=ROUNDING, atol=0)


@each_kind
def test_one_use_or_batch_is_itself(kind: str) -> None:
    io = KINDS[kind](3, 2)
    assert join_uses([io]) is io
    assert join_batches([io]) is io


@each_kind
def test_sizes_are_those_of_the_columns(kind: str) -> None:
    io = KINDS[kind](5, 3)
    assert columns(io).shape == (sum(rows * width for rows, width in io.shapes), 5)
    assert io.dtype == torch.float64
    assert io.shape.s == (1 if kind == "rows" else 3)


def test_patches_are_positions_by_features() -> None:
    plain = product(4, 6)
    folded = Product(plain.a.view(2, 4, 2, 3, 3, 1, 1), plain.g, True)
    assert folded.d_in == 3
    assert torch.equal(folded.inputs(), plain.a)
    assert torch.equal(folded.inputs(torch.tensor([2, 0])), plain.a[..., [2, 0]])
    assert torch.equal(columns(folded), columns(plain))


@pytest.mark.parametrize("kind", ["product", "lookup"])
def test_expanded_positions_are_samples(kind: str) -> None:
    io = KINDS[kind](4, 3)
    expanded, total = io.expanded(100, torch.Generator())
    assert total == expanded.n == 12
    assert expanded.shape.s == 1
    by_sample = columns(expanded).view(-1, 4, 3).sum(2)
    torch.testing.assert_close(by_sample, columns(io), rtol=ROUNDING, atol=ROUNDING)


def test_rows_have_no_positions_to_expand() -> None:
    io = rows(4, 1)
    assert io.expanded(2, torch.Generator()) == (io, 4)


@pytest.mark.parametrize("kind", ["product", "lookup"])
def test_drawn_positions_keep_the_fisher_in_the_mean(kind: str) -> None:
    io = KINDS[kind](3, 2)
    whole = columns(io.expanded(100, torch.Generator())[0])
    generator, fishers = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        drawn, total = io.expanded(4, generator)
        u = columns(drawn)
        assert (drawn.n, total) == (4, 6)
        fishers.append(u @ u.T)
    samples = torch.stack(fishers)
    error = (samples.mean(0) - whole @ whole.T).norm()
    assert error <= WHOLE * (samples.var(0).sum() / DRAWS).sqrt()
