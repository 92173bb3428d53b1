"""Every problem of the table: its exact solution solves it, and its points are where they belong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from seng.apps.science import PROBLEMS, Problem, summary
from seng.apps.science.points import face, faces, inside, spread, start
from seng.apps.science.problem import DTYPE
from seng.apps.science.problems.burgers import VISCOSITY, cole_hopf
from seng.apps.science.problems.inverse_poisson import NOISE
from seng.func import natural_gradient, verify

SOLVED = 1e-10  # residuals of closed forms: float64, derivatives by automatic differentiation
QUADRATURE = 1e-6  # residual of the Cole-Hopf quadrature, whose terms reach 100 in the front
EXACT_PROBLEMS = [name for name in PROBLEMS if name != "diabetes"]

each_problem = pytest.mark.parametrize("name", PROBLEMS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def few(name: str, problem: Problem) -> dict[str, Tensor]:
    """Some points of each term, evenly from first to last; none at time 0, where the quadrature has no derivative."""
    points = problem.draw(generator())
    if name == "burgers":
        points["equation"][:, 1].clamp_(min=0.05)
    return {term: tree_map(lambda leaf: leaf[:: max(1, len(leaf) // 12)], samples) for term, samples in points.items()}


@pytest.mark.parametrize("name", EXACT_PROBLEMS)
def test_solution_has_no_residual(name: str) -> None:
    problem = PROBLEMS[name]()
    assert problem.solution is not None
    for term, samples in few(name, problem).items():
        values = vmap(lambda sample: problem.residuals[term](problem.solution, sample))(samples)  # noqa: B023
        if term == "data":  # noise alone is left
            assert 0.5 * NOISE < float(values.std()) < 2 * NOISE
        else:
            assert float(values.abs().max()) < (QUADRATURE if name == "burgers" else SOLVED), term


@each_problem
def test_rows_are_right_where_the_network_is_new(name: str) -> None:
    problem = PROBLEMS[name]()
    errors = verify(dict(problem.residuals), problem.network(0), few(name, problem), weights=dict(problem.weights))
    assert max(errors.values()) < 1e-6  # what ``verify`` promises


@each_problem
def test_problem_is_the_same_for_equal_seeds(name: str) -> None:
    problem = PROBLEMS[name]()
    nets = [problem.network(seed) for seed in (3, 3, 4)]
    weights = [next(net.parameters()) for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    drawn = [tree_leaves(problem.draw(generator(seed))) for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True)]
    assert any(moved) == (name != "diabetes")
    assert set(problem.draw(generator())) == set(problem.residuals) >= set(problem.weights)


@each_problem
def test_error_is_that_of_the_judged_output(name: str) -> None:
    problem = PROBLEMS[name]()
    net = problem.network(0)
    with torch.no_grad():
        values = net(problem.test)[:, problem.judged]
    expected = float((values - problem.truth).square().sum() / problem.truth.square().sum()) ** 0.5
    assert problem.error(net) == pytest.approx(expected)
    if problem.solution is not None:
        exact = torch.stack([problem.solution(x)[problem.judged] for x in problem.test[:5]])
        torch.testing.assert_close(problem.truth[:5], exact)


@each_problem
def test_loss_is_that_of_the_engine(name: str) -> None:
    problem = PROBLEMS[name]()
    net, points = problem.network(0), few(name, problem)
    loss = problem.loss(net, points)
    _, info = natural_gradient(
        dict(problem.residuals), net, points, weights=dict(problem.weights), solver="gaussian", rank=2
    )
    assert info.loss == pytest.approx(loss.item())
    (gradient,) = torch.autograd.grad(loss, [next(net.parameters())])
    assert float(gradient.norm()) > 0


@each_problem
def test_summary_is_a_line(name: str) -> None:
    assert 20 < len(summary(name)) <= 110
    assert summary(name).endswith(".")


def test_cole_hopf_solves_burgers_equation_by_differences() -> None:
    """An independent solution: the method of lines, finite differences on a grid that resolves the front."""
    n, steps, until = 1000, 2000, 0.4
    x = torch.linspace(-1, 1, n + 1, dtype=DTYPE)
    u, h, dt = -torch.sin(math.pi * x), 2 / n, until / steps

    def change(u: Tensor) -> Tensor:
        out = torch.zeros_like(u)
        flux = u.square() / 2
        out[1:-1] = VISCOSITY * (u[2:] - 2 * u[1:-1] + u[:-2]) / h**2 - (flux[2:] - flux[:-2]) / (2 * h)
        return out

    for _ in range(steps):  # Heun's method
        half = u + dt * change(u)
        u = (u + half + dt * change(half)) / 2
    z = torch.stack([x, torch.full_like(x, until)], 1)[::10]
    exact = vmap(cole_hopf)(z)[:, 0]
    assert float((u[::10] - exact).abs().max()) < 1e-3  # h^2 u_xxx / 6 at the front, measured 5e-4


def test_cole_hopf_starts_at_the_initial_values() -> None:
    x = torch.linspace(-1, 1, 21, dtype=DTYPE)
    z = torch.stack([x, torch.zeros_like(x)], 1)
    torch.testing.assert_close(vmap(cole_hopf)(z)[:, 0], -torch.sin(math.pi * x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_spread_points_fill_the_cube_evenly(d: int) -> None:
    points = spread(512, d, generator())
    assert bool(((points >= 0) & (points < 1)).all())
    for axis in range(d):  # each eighth of each axis holds its share
        counts = torch.histc(points[:, axis], 8, 0, 1)
        assert float((counts - 64).abs().max()) <= 8


def test_points_lie_on_their_faces() -> None:
    bounds = [(-1.0, 1.0), (0.0, 3.0), (2.0, 5.0)]
    low, high = torch.tensor(bounds, dtype=DTYPE).mT
    for axis in range(3):
        for side in (0, 1):
            points = face(bounds, axis, side, 40, generator())
            assert bool((points[:, axis] == bounds[axis][side]).all())
            others = [k for k in range(3) if k != axis]
            assert bool(((points >= low) & (points <= high)).all())
            assert all(len(points[:, k].unique()) == 40 for k in others)
    assert len(faces(bounds, 25, generator())) == 24
    assert bool((faces(bounds, 24, generator(), axes=[1])[:12, 1] == 0).all())
    assert bool((start(bounds, 9, generator())[:, 2] == 2).all())
    assert inside(bounds, 7, generator()).shape == (7, 3)
