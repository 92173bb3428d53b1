"""The released estimator does what was measured of it (facts of the paper's code, reproduced for comparison)."""

from __future__ import annotations

import pytest
import torch

from seng.per_sample import Combined, PaperCode, Product
from seng.per_sample.paper_code import as_released
from seng.per_sample.sketched import sketch_rows, sketch_sides

from .samples import (
    assert_near,
    assert_operator,
    build_factor,
    dense_columns,
    flat,
    form,
    generator,
    normal,
    product,
    vector,
)

SEVERE = 0.7  # cosine with the true U b below which the outer product is clearly another direction


def test_explicit_gram_and_projection_are_too_large_by_the_ratio() -> None:
    full = product(n=6, d_in=7, d_out=5, bias=False).written_out(1.0, torch.float64)
    true = sketch_rows(full, "uniform", 14, generator())
    released = as_released(true)
    ratio = 35 / 14
    v = vector(true)
    assert_near(released.gram(), ratio * true.gram())
    assert_near(released.mv(v), ratio * true.mv(v))
    assert_near(flat(released.rmv(normal(6))), flat(true.rmv(normal(6))))


def test_implicit_gram_and_projection_are_too_large_by_both_ratios() -> None:
    full = product(n=6, d_in=8, d_out=6, bias=False).held(1.0, torch.float64)
    true = sketch_sides(full, "uniform", 4, generator())
    released = as_released(true)
    ratio = (8 / 4) * (6 / 4)
    v = vector(true)
    assert_near(released.gram(), ratio * true.gram())
    assert_near(released.mv(v), ratio * true.mv(v))


@pytest.mark.parametrize("groups", [1, 2])
def test_implicit_correction_is_an_outer_product_of_two_sums(groups: int) -> None:
    full = product(n=6, d_in=8, d_out=6, groups=groups, bias=False).held(1.3, torch.float64)
    released = as_released(sketch_sides(full, "uniform", 100, generator()))
    b = normal(6, seed=4)
    expected = torch.zeros(groups, 6, 8, dtype=torch.float64)
    for c in range(groups):
        for position in range(full.a.shape[2]):
            left = sum(b[i].abs().sqrt() * full.g[c, i, position] for i in range(6))
            right = sum(b[j] * full.a[c, j, position] for j in range(6)) / sum(x.abs().sqrt() for x in b)
            expected[c] += 1.3 * torch.outer(torch.as_tensor(left), torch.as_tensor(right))
    v = vector(released)
    start = v[0].clone()
    released.add_rmv_(v, b, beta=0.5)
    assert_near(v[0], 0.5 * start + expected.view_as(start))


def test_implicit_correction_points_elsewhere_than_the_true_one() -> None:
    full = product(n=40, s=4, d_in=12, d_out=10, bias=False).held(1.0, torch.float64)
    released = as_released(sketch_sides(full, "uniform", 100, generator()))
    b = normal(40, seed=4)
    wrong, true = flat(released.rmv(b)), flat(full.rmv(b))
    cosine = float(wrong @ true / (wrong.norm() * true.norm()))
    assert abs(cosine) < SEVERE
    assert wrong.norm() < SEVERE * true.norm()


def test_implicit_correction_of_nothing_is_nothing() -> None:
    full = product(bias=False).held(1.0, torch.float64)
    released = as_released(sketch_sides(full, "uniform", 100, generator()))
    assert float(flat(released.rmv(torch.zeros(5, dtype=torch.float64))).abs().sum()) == 0.0


def test_full_size_is_exact_for_explicit_layers() -> None:
    io = product(groups=2)
    factor = build_factor(io, form("paper-code"))
    assert isinstance(factor, PaperCode)
    assert_operator(factor, dense_columns(io, 1.0))


@pytest.mark.parametrize(("name", "implicit"), [("paper-code", False), ("paper-code, implicit", True)])
def test_damping_is_frozen(name: str, implicit: bool) -> None:
    factor = build_factor(product(), form(name))
    assert factor.frozen_damping
    assert isinstance(factor, Combined) is implicit
    true = build_factor(product(), form("implicit"))
    assert not true.frozen_damping


def test_implicit_layers_are_low_rank() -> None:
    io = Product(normal(1, 4, 9, 9), normal(1, 4, 9, 9, seed=1))
    factor = build_factor(io, form("paper-code, implicit", rank=2))
    assert isinstance(factor, PaperCode)
    assert isinstance(factor.full, Product)
    assert factor.full.a.shape == (1, 4, 2, 9)
