"""Sketched factors: Omega acts in the Gram matrix and in U^T v alike, U c stays exact, and nothing is biased."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seng.per_sample import Combined, PerSampleGradients, Product, Rows, Sketched
from seng.per_sample.sketched import low_rank, sketch_rows, sketch_sides
from seng.sketch import SKETCHES

from ..sketch.unbiased import is_unbiased
from .samples import FULL, assert_near, build_factor, dense_columns, flat, form, generator, normal, product, vector

NEAR_OPTIMAL = 1.02  # error of the randomised low rank over the truncated SVD's, seeded

every_sketch = pytest.mark.parametrize("sketch", SKETCHES)


def omega(factor: Sketched) -> Tensor:
    """The sketch as a matrix on flattened gradients, from the factor's own sides."""
    if factor.right is None:
        return factor.left(torch.eye(sum(r * c for r, c in factor.shapes), dtype=torch.float64)).T
    assert isinstance(factor.full, Product)
    groups, d_in = factor.full.a.shape[0], factor.full.a.shape[3]
    left = factor.left(torch.eye(factor.full.g.shape[3], dtype=torch.float64)).T.contiguous()
    right = factor.right(torch.eye(d_in, dtype=torch.float64)).T.contiguous()
    return torch.kron(torch.eye(groups, dtype=torch.float64), torch.kron(left, right))


def build(kind: str, sketch: str, io: Product, size: int) -> Sketched:
    if kind == "rows":
        return sketch_rows(io.written_out(1.3, torch.float64), sketch, size, generator(3))
    return sketch_sides(io.held(1.3, torch.float64), sketch, size, generator(3))


@every_sketch
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["rows", "sides"])
def test_sketched_factor_obeys_its_laws(sketch: str, groups: int, kind: str) -> None:
    io = product(n=6, d_in=7, d_out=5, groups=groups, bias=False)
    factor, u = build(kind, sketch, io, size=4), dense_columns(io, 1.3)
    v, c = vector(factor), normal(6, seed=4)
    small = omega(factor) @ u
    assert len(small) < len(u)
    assert_near(factor.to_dense(), u)
    assert_near(factor.gram(), small.T @ small)
    assert_near(factor.mv(v), small.T @ (omega(factor) @ flat(v)))
    assert_near(flat(factor.rmv(c)), u @ c)


@every_sketch
@pytest.mark.parametrize("kind", ["rows", "sides"])
def test_sketched_gram_of_a_layer_is_unbiased(sketch: str, kind: str) -> None:
    io = product(n=3, s=2, d_in=6, d_out=5, bias=False)
    u = dense_columns(io, 1.0)
    full = io.written_out(1.0, torch.float64) if kind == "rows" else io.held(1.0, torch.float64)

    def gram(draws: torch.Generator) -> Tensor:
        if isinstance(full, Rows):
            return sketch_rows(full, sketch, 6, draws).gram()
        return sketch_sides(full, sketch, 3, draws).gram()

    assert is_unbiased(gram, u.T @ u)


def test_two_sided_check_rejects_one_draw_used_for_both_sides() -> None:
    io = product(n=3, s=1, d_in=6, d_out=6, bias=False)
    io = Product(io.a, io.a)  # rows and columns alike: a shared draw shows
    full, u = io.held(1.0, torch.float64), dense_columns(io, 1.0)

    def gram(draws: torch.Generator) -> Tensor:
        side = SKETCHES["uniform"](6, 3, draws, torch.ones(6))
        return Product(side(full.a), side(full.g), False, 1.0).gram()

    assert not is_unbiased(gram, u.T @ u)


@pytest.mark.parametrize("estimator", ["sketched-rows", "implicit"])
@every_sketch
def test_full_size_sketch_equals_none(estimator: str, sketch: str) -> None:
    io = product(groups=2)
    factor = build_factor(io, form(estimator, sketch=sketch))
    u = dense_columns(io, 1.0)
    v = vector(factor)
    assert_near(factor.gram(), u.T @ u)
    assert_near(factor.mv(v), u.T @ flat(v))


@pytest.mark.parametrize("estimator", ["sketched-rows", "implicit"])
@every_sketch
def test_sketched_factor_follows_its_generator(estimator: str, sketch: str) -> None:
    io = product(d_in=9, d_out=9)
    grams = [build_factor(io, form(estimator, size=4, sketch=sketch), seed=seed).gram() for seed in (0, 0, 1)]
    assert torch.equal(grams[0], grams[1])
    assert not torch.equal(grams[0], grams[2])


def test_implicit_keeps_the_bias_exact() -> None:
    io = product(d_in=9, d_out=9)
    factor = build_factor(io, form("implicit", size=3, rank=1))
    assert isinstance(factor, Combined)
    bias = dense_columns(io, 1.0)[81:]
    assert_near(factor.to_dense()[81:], bias)
    assert_near(factor.terms[1].gram(), bias.T @ bias)


@pytest.mark.parametrize("scratch_elements", [1, 2**24])
def test_low_rank_columns_are_near_the_best(scratch_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seng.per_sample.sketched.SCRATCH", scratch_elements)
    io = product(n=6, s=20, d_in=12, d_out=12, groups=2, bias=False)
    low = low_rank(io, 3, 1.0, torch.float64, generator())
    full = dense_columns(io, 1.0).T.reshape(6 * 2, 12, 12)
    errors = (low.to_dense().T.reshape(6 * 2, 12, 12) - full).flatten(1).norm(dim=1)
    best = torch.linalg.svdvals(full)[:, 3:].norm(dim=1)
    assert low.a.shape == (2, 6, 3, 12)
    assert (errors <= best * NEAR_OPTIMAL).all()


def test_low_rank_is_an_error_only_where_rank_is_cut() -> None:
    io = product(n=6, s=2, d_in=12, d_out=12)
    for rank, exact in ((1, False), (2, True), (FULL, True)):
        factor: PerSampleGradients = build_factor(io, form("implicit", rank=rank))
        same = bool((factor.to_dense() - dense_columns(io, 1.0)).abs().max() < 1e-9)
        assert same is exact
