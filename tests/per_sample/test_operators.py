"""Every factor is the matrix U of its definition, whichever way it is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from seng.per_sample import (
    Combined,
    LayerGradients,
    Lookup,
    PerSampleGradients,
    Product,
    Rows,
    implicit_gram_is_cheaper,
    join_batches,
    join_uses,
)

from .samples import (
    FORMS,
    assert_near,
    assert_operator,
    build_factor,
    dense_columns,
    form,
    generator,
    layer_ios,
    lookup_io,
    normal,
    product,
    rows_io,
    vector,
)

SCALE = 1.7
IOS: dict[str, Callable[[], LayerGradients]] = {
    "one position": lambda: product(s=1),
    "positions": product,
    "without bias": lambda: product(bias=False),
    "groups": lambda: product(groups=3),
    "more samples than parameters": lambda: product(n=20),
    "lookup": lookup_io,
    "lookup of few": lambda: lookup_io(s=4, vocabulary=3),
    "rows": rows_io,
}


@pytest.mark.parametrize("estimator", [name for name in FORMS if name not in ("rows", "paper-code, implicit")])
@pytest.mark.parametrize("kind", IOS)
def test_factor_matches_its_definition(estimator: str, kind: str, scratch: int) -> None:
    io = IOS[kind]()
    factor = build_factor(io, form(estimator), SCALE)
    assert_operator(factor, dense_columns(io, SCALE))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(io=layer_ios())
def test_operator_matches_its_definition_for_any_shape(io: LayerGradients) -> None:
    assert_operator(build_factor(io, form("operator"), SCALE), dense_columns(io, SCALE))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(io=layer_ios(), again=st.integers(1, 3))
def test_what_a_layer_gives_is_an_operator_itself(io: LayerGradients, again: int) -> None:
    assert_operator(io, dense_columns(io, 1.0))
    assert_operator(join_uses([io] * again), again * dense_columns(io, 1.0))
    assert_operator(join_batches([io] * again), dense_columns(io, 1.0).repeat(1, again))


@pytest.mark.parametrize("kind", IOS)
def test_rows_keep_the_fisher_on_at_most_p_columns(kind: str, scratch: int) -> None:
    io = IOS[kind]()
    u = dense_columns(io, SCALE)
    factor = build_factor(io, form("rows"), SCALE)
    columns = factor.to_dense()
    assert factor.n == (io.n if isinstance(io, Lookup) else min(u.shape))
    assert_near(columns @ columns.T, u @ u.T)
    assert_operator(factor, columns)


def test_every_factor_type_is_checked_here() -> None:
    built = {type(build_factor(make(), form(name))) for name in FORMS for make in IOS.values()}
    ours = {kind for kind in PerSampleGradients.TYPES.values() if kind.__module__.startswith("seng.")}
    assert ours == built


@pytest.mark.parametrize("estimator", FORMS)
@pytest.mark.parametrize("kind", IOS)
def test_tiles_are_rows_of_the_whole(estimator: str, kind: str) -> None:
    factor = build_factor(IOS[kind](), form(estimator), SCALE)
    columns, first = factor.to_dense(), 0
    for slot, (rows, width) in enumerate(factor.shapes):
        whole = columns[first : first + rows * width].T.view(factor.n, rows, width)
        first += rows * width
        for start in range(rows):
            for stop in range(start + 1, rows + 1):
                assert_near(factor.tile(slot, start, stop), whole[:, start:stop])


@pytest.mark.parametrize(
    ("kind", "elements"), [("positions", 5 * 3 * (4 + 2)), ("rows", 5 * 8), ("lookup", 5 * 3 * (2 + 1))]
)
def test_nbytes_counts_the_tensors_held(kind: str, elements: int) -> None:
    factor = build_factor(IOS[kind](), form("operator"), SCALE)
    assert factor.nbytes() == 8 * elements  # indices are 64 bits wide as well


def test_nbytes_counts_both_sides_of_a_sketch() -> None:
    factor = build_factor(product(s=2, bias=False), form("implicit", size=2), SCALE)
    full, small, sampling = 5 * 2 * (4 + 2), 5 * 2 * (2 + 2), 2 + 2  # the output side has 2 features: nothing to draw
    assert factor.nbytes() == 8 * (full + small + sampling)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_compute_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    io = product()
    low = Product(io.a.to(dtype), io.g.to(dtype), True)
    wide = Product(low.a.double(), low.g.double(), True)
    for estimator in FORMS:
        factor = build_factor(low, form(estimator))
        exact = build_factor(wide, form(estimator))
        assert_near(factor.to_dense(), exact.to_dense())


# -- Product --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_both_ways_to_a_gram_matrix_agree(groups: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    io = product(n=6, groups=groups, bias=bias)
    factor, u = io.held(SCALE, torch.float64), dense_columns(io, SCALE)
    for cheaper in (True, False):
        module = import_module("seng.per_sample.product")
        monkeypatch.setattr(module, "implicit_gram_is_cheaper", lambda *_, answer=cheaper: answer)
        assert_near(factor.gram(), u.T @ u)


def test_implicit_gram_is_chosen_where_it_saves() -> None:
    assert implicit_gram_is_cheaper(256, 1, 784, 1000)
    assert not implicit_gram_is_cheaper(256, 196, 144, 16)


@pytest.fixture
def always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the check worth its while for factors of any size."""
    monkeypatch.setattr(sys.modules["seng.per_sample.product"], "CHECK_FROM", 0)


def mean_gradient(factor: Product, alpha: float) -> tuple[torch.Tensor, ...]:
    return tuple(alpha * x for x in factor.rmv(torch.full((factor.n,), factor.n**-0.5, dtype=torch.float64)))


@pytest.mark.usefixtures("always_checked")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 0.01, -3.0, 0.0])
def test_mean_multiple_accepts_multiples_of_the_mean(groups: int, bias: bool, alpha: float) -> None:
    factor = product(n=8, groups=groups, bias=bias).held(SCALE, torch.float64)
    found = factor.mean_multiple(mean_gradient(factor, alpha), generator())
    assert found is not None
    assert float(found) == pytest.approx(alpha, rel=1e-12)


@pytest.mark.usefixtures("always_checked")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("change", ["weight decay", "one entry", "bias", "other sample", "unrelated"])
def test_mean_multiple_rejects_anything_else(groups: int, change: str) -> None:
    factor = product(n=8, groups=groups).held(SCALE, torch.float64)
    v = mean_gradient(factor, 1.0)
    if change == "weight decay":
        v[0].add_(normal(*v[0].shape, seed=7), alpha=1e-6)
    elif change == "one entry":
        v[0].view(-1)[0] *= 1 + 1e-6
    elif change == "bias":
        v[1].mul_(1 + 1e-6)
    elif change == "other sample":
        c = torch.full((8,), 8**-0.5, dtype=torch.float64)
        c[3] *= 1 + 1e-6
        v = factor.rmv(c)
    else:
        v = tuple(normal(*x.shape, seed=11) for x in v)
    assert factor.mean_multiple(v, generator()) is None


@pytest.mark.usefixtures("always_checked")
def test_mean_multiple_rejects_a_mean_of_zero() -> None:
    factor = Product(torch.ones(1, 4, 1, 3), torch.zeros(1, 4, 1, 2), True, 1.0)
    assert factor.mean_multiple((torch.ones(2, 3), torch.ones(2)), generator()) is None


def test_mean_multiple_is_not_claimed_by_other_factors() -> None:
    for name in ("sketched-rows", "implicit", "paper-code"):
        factor = build_factor(product(), form(name))
        assert factor.mean_multiple(vector(factor), generator()) is None


# -- Lookup -----------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Record the largest number of elements any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("s", [2, 9])
def test_lookup_never_forms_samples_by_vocabulary(s: int) -> None:
    n, d, vocabulary = 8, 4, 5000
    factor = Lookup(torch.randint(0, vocabulary, (n, s), generator=generator()), normal(n, s, d), vocabulary, 1.0)
    v = vector(factor)
    with LargestTensor() as largest:
        factor.gram()
        factor.mv(v)
        factor.add_rmv_(v, normal(n), beta=0.5)
    assert largest.elements <= max(vocabulary * d, n * n * s * s * d)  # the gradient itself, or scratch
    assert vocabulary * d <= largest.elements  # views of v are seen: the recorder works
    assert largest.elements < n * vocabulary * d / 2


@pytest.mark.parametrize("s", [1, 2, 6])
@pytest.mark.parametrize("vocabulary", [1, 3, 100])
def test_lookup_gram_matches_dense_in_both_branches(s: int, vocabulary: int, scratch: int) -> None:
    io = lookup_io(n=6, s=s, vocabulary=vocabulary)
    u = dense_columns(io, SCALE)
    assert_near(Lookup(io.ids, io.g, vocabulary, SCALE).gram(), u.T @ u)


# -- Rows ---------------------------------------------------------------------------------------------------------


def test_thin_leaves_few_samples_alone() -> None:
    factor = product(n=3).written_out(SCALE, torch.float64)
    assert factor.thin() is factor


def test_from_rows_splits_by_parameter() -> None:
    factor = product().written_out(SCALE, torch.float64)
    again = Rows.split(torch.cat(factor.parts, 1), factor.shapes)
    assert all(torch.equal(x, y) for x, y in zip(factor.parts, again.parts, strict=True))


# -- Combined ---------------------------------------------------------------------------------------------------------


def combined_case(kind: str) -> tuple[Combined, torch.Tensor]:
    """Terms on disjoint, shared and missing parameters, and U from its definition."""
    weight, bias = product(n=5, d_in=3, d_out=4, bias=False), rows_io(n=5, sizes=(4,))
    twin = lookup_io(n=5, d=3, vocabulary=4)
    shapes = ((4, 3), (4, 1))
    first, second = (dense_columns(io, SCALE) for io in (weight, bias))
    zero = torch.zeros(4, 5, dtype=torch.float64)
    operator = [build_factor(io, form("operator"), SCALE) for io in (weight, bias, twin)]
    if kind == "disjoint":
        return Combined((operator[0], operator[1]), ((0,), (1,)), shapes), torch.cat([first, second])
    if kind == "swapped":
        return Combined((operator[1], operator[0]), ((0,), (1,)), shapes[::-1]), torch.cat([second, first])
    if kind == "shared":
        u = torch.cat([first + dense_columns(twin, SCALE), second])
        return Combined(tuple(operator), ((0,), (1,), (0,)), shapes), u
    assert kind == "missing"
    return Combined((operator[0], operator[2]), ((0,), (0,)), shapes), torch.cat(
        [first + dense_columns(twin, SCALE), zero]
    )


@pytest.mark.parametrize("kind", ["disjoint", "swapped", "shared", "missing"])
def test_combined_matches_its_definition(kind: str, scratch: int) -> None:
    assert_operator(*combined_case(kind))


def test_combined_counts_the_bytes_of_its_terms() -> None:
    factor, _ = combined_case("shared")
    assert factor.nbytes() == sum(term.nbytes() for term in factor.terms)


def test_combined_has_frozen_damping_if_a_term_has() -> None:
    terms = [build_factor(product(bias=False), form(name)) for name in ("operator", "paper-code")]
    shapes = product(bias=False).shapes
    assert Combined((terms[0], terms[1]), ((0,), (0,)), shapes).frozen_damping
    assert not Combined((terms[0], terms[0]), ((0,), (0,)), shapes).frozen_damping
