"""K in tiles, and its factor in place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.func import gram as module
from seng.func.config import Settings
from seng.func.gram import InPlaceFactor, cholesky_, gram, mirror_
from seng.func.problem import problem_of
from seng.func.rows import COPIES, Rows
from seng.func.trees import params_of
from seng.solve import FactorisationError

from .problems import RESIDUALS
from .reference import DTYPE, dense, draw, network, parameters

EXACT = 1e-10  # float64, sums in another order
NET, N = network(), 7
P = sum(p.numel() for p in NET.parameters())


def rows_with(memory: int) -> Rows:
    """Rows that are made in tiles, without factors."""
    params = params_of(NET, "test")
    problem = problem_of(RESIDUALS["second"].ours, params, draw(N, 2), Settings(memory=memory), 0, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seng.func.rows.factors_of", lambda *args: None)
        return problem.linearise().rows


def positive(n: int, seed: int = 0) -> Tensor:
    a = draw(n, n, seed=seed)
    return a @ a.mT + torch.eye(n, dtype=DTYPE)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)


@pytest.mark.parametrize("per_tile", [1, 2, 3, 100])
def test_gram_matches_dense_rows_in_any_tiles(per_tile: int) -> None:
    memory = COPIES * per_tile * P * DTYPE.itemsize
    reference = dense({"r": RESIDUALS["second"].theirs(NET)}, {"r": draw(N, 2)}, parameters(NET))
    rows = rows_with(memory)
    assert (rows.held is not None) == (per_tile == 100)
    assert len(rows.pieces) == -(-N // per_tile)
    k = gram(rows, torch.float64)
    assert k is not None
    torch.testing.assert_close(k, reference.j @ reference.j.mT, rtol=EXACT, atol=EXACT)
    assert torch.equal(k, k.mT)


@pytest.mark.parametrize("strip", [1, 2, 5])
def test_gram_is_the_same_in_any_strips(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gram(rows_with(2**30), torch.float64)
    monkeypatch.setattr(module, "STRIP", strip)
    assert whole is not None
    torch.testing.assert_close(gram(rows_with(2**30), torch.float64), whole, rtol=EXACT, atol=EXACT)


def test_held_rows_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    write = Rows._write
    monkeypatch.setattr(Rows, "_write", lambda self, *rest: made.append(1) or write(self, *rest))
    rows = rows_with(2**30)
    for _ in range(3):
        gram(rows, torch.float64)
        rows.mv(torch.ones(P, dtype=DTYPE))
        rows.rmv(torch.ones(N, dtype=DTYPE))
    assert len(made) == 1


@pytest.mark.parametrize("per_tile", [2, 100])
def test_products_match_dense_rows(per_tile: int) -> None:
    reference = dense({"r": RESIDUALS["second"].theirs(NET)}, {"r": draw(N, 2)}, parameters(NET))
    rows = rows_with(COPIES * per_tile * P * DTYPE.itemsize)
    v, c = draw(P, seed=1), draw(N, seed=2)
    torch.testing.assert_close(rows.mv(v), reference.j @ v, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(rows.rmv(c), reference.j.mT @ c, rtol=EXACT, atol=EXACT)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 14), st.integers(1, 5), st.integers(0, 50))
def test_cholesky_matches_lapack_in_any_blocks(n: int, block: int, seed: int) -> None:
    k = positive(n, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        work = k.clone()
        assert cholesky_(work)
    torch.testing.assert_close(work.tril(), torch.linalg.cholesky(k), rtol=EXACT, atol=EXACT)
    assert torch.equal(work.triu(1), k.triu(1))  # kept for another try


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("bad", [0, 4, 9])
def test_failed_cholesky_says_so_and_keeps_the_upper_triangle(bad: int) -> None:
    k = positive(10)
    k[bad, bad] = -1.0
    work = k.clone()
    assert not cholesky_(work)
    assert torch.equal(work.triu(1), k.triu(1))


@pytest.mark.usefixtures("small_blocks")
def test_mirror_copies_the_lower_triangle() -> None:
    a = draw(8, 8)
    expected = a.tril() + a.tril(-1).mT
    assert torch.equal(mirror_(a.clone()), expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_factor_solves_in_place(damping: float) -> None:
    k, r = positive(10), draw(10, seed=1)
    work = k.clone()
    factor = InPlaceFactor(work, damping)
    assert factor.k.data_ptr() == work.data_ptr()
    assert factor.rungs == 0
    expected = torch.linalg.solve(k + damping * torch.eye(10, dtype=DTYPE), r)
    torch.testing.assert_close(factor.solve(r), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.usefixtures("small_blocks")
def test_indefinite_matrix_is_solved_with_jitter() -> None:
    vectors = torch.linalg.qr(draw(10, 10)).Q
    values = torch.linspace(0, 1, 10, dtype=DTYPE)
    values[0] = -1e-8  # rounding of a matrix in low precision
    k = (vectors * values) @ vectors.mT
    k, r = (k + k.mT) / 2, draw(10, seed=1)
    factor = InPlaceFactor(k.clone(), 0.0)
    assert factor.rungs == 2  # neither K itself nor rounding of float64 on top
    shifted = k + 1e-6 * k.diagonal().mean() * torch.eye(10, dtype=DTYPE)
    torch.testing.assert_close(factor.solve(r), torch.linalg.solve(shifted, r), rtol=1e-7, atol=1e-7)  # condition 1e6


@pytest.mark.parametrize(
    ("k", "reason"),
    [
        (torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]), "not finite"),
        (torch.tensor([[1.0, 5.0], [5.0, 1.0]]), "no jitter"),
    ],
)
def test_hopeless_matrix_is_refused(k: Tensor, reason: str) -> None:
    with pytest.raises(FactorisationError, match=reason):
        InPlaceFactor(k, 0.1)
