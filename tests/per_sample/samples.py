"""What layers capture, at random, and U written out from its definition."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from seng.estimators import Form, LowRank, Operator, Sketched, Truncated
from seng.estimators import Rows as RowsForm
from seng.estimators.paper_code import ReleasedLowRank, ReleasedRows
from seng.per_sample import Grads, LayerGradients, Lookup, PerSampleGradients, Product, Rows

ROUNDING = 1e-11  # float64: sums of at most a few thousand products of normal numbers, relative to the largest
FULL = 10_000  # rank and sketch size that leave nothing out


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def product(n: int = 5, s: int = 3, d_in: int = 4, d_out: int = 2, groups: int = 1, bias: bool = True) -> Product:
    return Product(normal(groups, n, s, d_in), normal(groups, n, s, d_out, seed=1), bias)


def lookup_io(n: int = 5, s: int = 3, d: int = 2, vocabulary: int = 7) -> Lookup:
    ids = torch.randint(0, vocabulary, (n, s), generator=generator(2))
    return Lookup(ids, normal(n, s, d), vocabulary)


def rows_io(n: int = 5, sizes: tuple[int, ...] = (4, 4)) -> Rows:
    return Rows.of(tuple(normal(n, size, seed=k) for k, size in enumerate(sizes)))


def layer_ios() -> st.SearchStrategy[LayerGradients]:
    few = st.integers(1, 4)
    return st.one_of(
        st.builds(product, st.integers(1, 7), few, few, few, st.integers(1, 3), st.booleans()),
        st.builds(lookup_io, st.integers(1, 7), few, few, st.integers(1, 9)),
        st.builds(rows_io, st.integers(1, 7), st.lists(few, min_size=1, max_size=2).map(tuple)),
    )


def dense_columns(io: LayerGradients, scale: float) -> Tensor:
    """U [p, n] from the definition: one sample, one position at a time."""
    columns = []
    for i in range(io.n):
        parts = [torch.zeros(shape, dtype=torch.float64) for shape in io.shapes]
        if isinstance(io, Product):
            for s in range(io.shape.s):
                for c in range(len(io.g)):
                    g, a = io.g[c, i, s], io.a[c, i, s]
                    own = slice(c * len(g), (c + 1) * len(g))
                    parts[0][own] += g[:, None] * a[None, :]
                    if io.bias:
                        parts[1][own] += g[:, None]
        elif isinstance(io, Lookup):
            for s in range(io.shape.s):
                parts[0][io.ids[i, s]] += io.g[i, s]
        else:
            assert isinstance(io, Rows)
            parts = [part[i] for part in io.parts]
        columns.append(torch.cat([part.reshape(-1) for part in parts]))
    return scale * torch.stack(columns, 1)


FORMS = ("operator", "rows", "sketched-rows", "implicit", "truncated", "paper-code", "paper-code, implicit")


def form(name: str, size: int = FULL, rank: int = FULL, sketch: str = "uniform") -> Form:
    forms = {
        "operator": Operator(),
        "rows": RowsForm(),
        "sketched-rows": Sketched(sketch, size),
        "implicit": LowRank(rank, size, sketch),
        "truncated": Truncated(),
        "paper-code": ReleasedRows(rows=size),
        "paper-code, implicit": ReleasedLowRank(rank, size),
    }
    return forms[name]


def build_factor(io: LayerGradients, how: Form, scale: float = 1.0, seed: int = 0) -> PerSampleGradients:
    """U in a form, or as it was captured where the form does not take this kind of layer."""
    taken = how if io.shape.kind in how.kinds else Operator()
    return taken.build(io, scale, torch.float64, generator(seed))


def vector(factor: PerSampleGradients, seed: int = 5) -> Grads:
    """A random vector of length p as the gradients of a block."""
    return tuple(normal(rows, columns, seed=seed + k) for k, (rows, columns) in enumerate(factor.shapes))


def flat(v: Grads) -> Tensor:
    return torch.cat([x.reshape(-1) for x in v])


def assert_near(got: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    """Compare relative to the largest expected entry."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(largest, 1e-3))


def assert_operator(factor: PerSampleGradients, u: Tensor) -> None:
    """Check every operation of a factor against the matrix U [p, n] that it should be."""
    v, c = vector(factor), normal(factor.n, seed=9)
    assert factor.n == u.shape[1]
    assert sum(rows * columns for rows, columns in factor.shapes) == u.shape[0]
    assert_near(factor.to_dense(), u)
    assert_near(factor.gram(), u.T @ u)
    assert_near(factor.gram_by_tiles(), u.T @ u)
    assert_near(factor.mv(v), u.T @ flat(v))
    assert_near(flat(factor.rmv(c)), u @ c)
    for beta in (1.0, 0.0, -0.7):
        working = tuple(x.clone() for x in v)
        factor.add_rmv_(working, c, beta)
        assert_near(flat(working), beta * flat(v) + u @ c)
