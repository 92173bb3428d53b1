"""Solvers against dense algebra, and what sketches cost in accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seng.func import SOLVERS, Solver, natural_gradient
from seng.func.config import Settings
from seng.func.problem import problem_of
from seng.func.rows import COPIES, Rows
from seng.func.solvers import Damping, Gaussian, LeastSquares, Nystrom
from seng.func.trees import params_of
from seng.sketch import gaussian
from seng.solve import FactorisationError

from .reference import DTYPE, dense, draw, flat

EXACT = 1e-10  # float64, well-conditioned systems
N, P, DAMPING = 24, 15, 0.01

# rows whose singular values fall fast, as they do in physics-informed networks
LEFT, RIGHT = (torch.linalg.qr(draw(size, P, seed=size)).Q for size in (N, P))
DECAY = 10.0 ** -torch.linspace(0, 4, P, dtype=DTYPE)
A = N**0.5 * (LEFT * DECAY) @ RIGHT.mT  # N**0.5 undoes the scale of the rows
K = A @ A.mT / N
R = draw(N, seed=3)

each_solver = pytest.mark.parametrize("name", SOLVERS)


def rows(memory: int = 2**30) -> Rows:
    params = params_of(draw(P, seed=9), "test")
    problem = problem_of(lambda w, a: a @ w, params, A, Settings(memory=memory), 0, "test")
    return problem.linearise().rows


def solver(name: str, memory: int = 2**30, damping: float = DAMPING, seed: int = 0, **options: Any) -> Solver:
    generator = torch.Generator().manual_seed(seed)
    return SOLVERS[name](rows(memory), Damping(damping, False), Settings(**options), generator)


def damped(damping: float = DAMPING) -> Tensor:
    return K + damping * torch.eye(N, dtype=DTYPE)


def error(c: Tensor, damping: float = DAMPING) -> float:
    exact = torch.linalg.solve(damped(damping), R)
    return float((c - exact).norm() / exact.norm())


@each_solver
@pytest.mark.parametrize("memory", [COPIES * P * DTYPE.itemsize * 5, 2**30])
def test_solver_knows_trace_and_damping(name: str, memory: int) -> None:
    made = SOLVERS[name](rows(memory), Damping(0.5, True), Settings(rank=4), torch.Generator())
    assert made.trace == pytest.approx(float(K.trace()), rel=EXACT)
    assert made.damping == pytest.approx(0.5 * float(K.trace()) / N, rel=EXACT)


@each_solver
@pytest.mark.parametrize("dampings", [(1e-6, DAMPING), (10.0, DAMPING), (1.0, 1e-3, DAMPING)])
def test_damped_again_is_as_made_anew(name: str, dampings: tuple[float, ...]) -> None:
    made = solver(name, damping=dampings[0], rank=6)
    for damping in dampings[1:]:
        made.damp(Damping(damping, False))
    anew = solver(name, rank=6)
    assert torch.equal(made.solve(R), anew.solve(R))
    assert (made.trace, made.damping, made.rungs) == (anew.trace, anew.damping, anew.rungs)


def test_exact_solver_recovers_from_a_damping_that_failed() -> None:
    made = solver("exact")
    with pytest.raises(FactorisationError, match="no jitter made it positive definite"):
        made.damp(Damping(-100.0, False))
    made.damp(Damping(DAMPING, False))
    assert torch.equal(made.solve(R), solver("exact").solve(R))


@each_solver
def test_solver_is_linear(name: str) -> None:
    made = solver(name, rank=6, iterations=0)
    other = draw(N, seed=4)
    torch.testing.assert_close(made.solve(R + 2 * other), made.solve(R) + 2 * made.solve(other), rtol=1e-8, atol=1e-8)


@each_solver
def test_solver_is_the_same_in_chunks(name: str) -> None:
    whole, chunked = (solver(name, memory, rank=6).solve(R) for memory in (2**30, COPIES * P * DTYPE.itemsize * 5))
    torch.testing.assert_close(whole, chunked, rtol=1e-8, atol=1e-8)


def test_exact_matches_dense_solve() -> None:
    assert error(solver("exact").solve(R)) < EXACT


@pytest.mark.parametrize(("damping", "squared"), [(1.0, True), (1e-6, True), (1e-13, True), (1e-14, False), (0, False)])
@pytest.mark.parametrize("with_rest", [False, True])
def test_least_squares_keeps_the_digits_of_j_at_any_damping(damping: float, squared: bool, with_rest: bool) -> None:
    made = LeastSquares(rows(), Damping(0.1, False), Settings(), torch.Generator())
    made.damp(Damping(damping, False))
    rest = 1e-9 * draw(P, seed=5) if with_rest else torch.zeros(P, dtype=DTYPE)
    assert (made._factor is not None) == squared
    inverse = (RIGHT / (DECAY.square() + damping)) @ RIGHT.mT  # by the singular values of J, with all digits
    expected = (RIGHT * (DECAY / (DECAY.square() + damping))) @ (LEFT.mT @ R) + inverse @ rest
    got = made.direction(R, rest if with_rest else None).d
    assert float((got - expected).norm() / expected.norm()) < 1e-9
    if squared and damping < 1e-6:  # the refinement is needed
        rough = made.direction(R, rest if with_rest else None, rough=True).d
        assert float((rough - expected).norm()) > 10 * float((got - expected).norm())


def test_nystrom_of_full_rank_is_exact_without_iterations() -> None:
    assert error(solver("nystrom", rank=N, iterations=0).solve(R)) < 1e-6  # the shift is about eps sqrt(n) |K|


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_nystrom_converges_whatever_its_rank(rank: int) -> None:
    made = solver("nystrom", rank=rank, iterations=50, tolerance=1e-12)
    assert error(made.solve(R)) < 1e-8


def test_nystrom_needs_fewer_iterations_with_more_columns() -> None:
    counts = []
    for rank in (1, 6, 12):
        made = solver("nystrom", rank=rank, iterations=100, tolerance=1e-8, damping=1e-5)
        assert isinstance(made, Nystrom)
        made.solve(R)
        counts.append(made.iterations)
    assert counts[0] > counts[1] > counts[2]


def test_nystrom_tail_bounds_what_it_misses() -> None:
    made = [solver("nystrom", rank=rank, seed=rank) for rank in (2, 5, 9, P)]
    tails = [m.tail for m in made if isinstance(m, Nystrom)]
    assert tails[0] > tails[1] > tails[2] > 0
    values = torch.linalg.eigvalsh(K).flip(0)
    for rank, tail in zip((2, 5, 9), tails, strict=False):
        assert tail >= float(values[rank:].sum()) - EXACT  # no approximation of that rank can miss less
    assert abs(tails[3]) < 1e-8  # K has that rank


def test_nystrom_tolerance_stops_it_early() -> None:
    loose, tight = (solver("nystrom", rank=3, iterations=100, tolerance=t) for t in (1e-1, 1e-10))
    residuals = [float((damped() @ m.solve(R) - R).norm() / R.norm()) for m in (loose, tight)]
    assert residuals[0] <= 1e-1
    assert residuals[1] <= 1e-9
    assert isinstance(loose, Nystrom)
    assert isinstance(tight, Nystrom)
    assert loose.iterations < tight.iterations


def test_gaussian_solves_the_sketched_problem() -> None:
    made = solver("gaussian", rank=10, seed=5)
    s = gaussian(N, 10, torch.Generator().manual_seed(5), torch.ones(N)).matrix.to(DTYPE)
    expected = s.mT @ torch.linalg.solve(s @ K @ s.mT + DAMPING * torch.eye(10, dtype=DTYPE), s @ R)
    torch.testing.assert_close(made.solve(R), expected, rtol=1e-9, atol=1e-9)
    assert isinstance(made, Gaussian)


def test_gaussian_gets_better_with_more_columns() -> None:
    errors = [sum(error(solver("gaussian", rank=q, seed=k).solve(R)) for k in range(20)) for q in (8, 64, 512)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("name", ["nystrom", "gaussian"])
def test_solve_error_is_the_residual_of_the_system(name: str) -> None:
    w = draw(P, seed=9)
    d, info = natural_gradient(
        lambda w, a: a @ w, w, A, solver=name, rank=5, iterations=1, damping=DAMPING, damping_mode="absolute"
    )
    reference = dense({"r": lambda a: a @ leaf}, {"r": A}, [leaf := w.clone().requires_grad_()])
    c = torch.linalg.lstsq(reference.j.mT, d[:, None]).solution[:, 0]  # d = J^T c; c up to what J^T does not see
    inside = torch.linalg.pinv(reference.j.mT) @ reference.j.mT
    residual = inside @ (reference.j @ d + DAMPING * c - reference.r)
    assert float(residual.norm() / reference.r.norm()) <= info.solve_error * (1 + 1e-6)
    assert 1e-6 < info.solve_error < 2


@pytest.mark.parametrize("name", ["nystrom", "gaussian"])
def test_sketch_that_covers_all_rows_is_exact(name: str) -> None:
    x, w = draw(6, 3), draw(3, seed=1)
    exact, sketched = (
        natural_gradient(lambda w, a: a @ w - 1, w, x, solver=s, rank=6, damping=DAMPING)[0] for s in ("exact", name)
    )
    assert torch.equal(exact, sketched)


def test_sketches_depend_on_the_seed_alone() -> None:
    w = draw(P, seed=9)
    d = [
        flat([natural_gradient(lambda w, a: a @ w, w, A, solver="gaussian", rank=5, seed=seed)[0]])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(d[0], d[1])
    assert not torch.equal(d[0], d[2])
