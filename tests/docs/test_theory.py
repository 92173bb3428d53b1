"""Each numbered equation of docs/theory.md, by its number."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seng import PolynomialLR, Preconditioner
from seng.apps.theory import sketch_study, solver_study, stationarity_study
from seng.apps.theory.ntk import LENGTH, Network, Task, experiment, limiting_kernel, projection_share
from seng.apps.theory.sketches import dense_sketch, direction, embedding, samples
from seng.apps.theory.solvers import BOUNDS, SOLVED, solved, system_of
from seng.apps.theory.stationarity import LARGEST, LIPSCHITZ, WIDTH, Constants, Fit
from seng.distributed import Local
from seng.distributed.communicator import Communicator
from seng.estimators import ESTIMATORS, Form, LowRank, Operator, Sketched, Truncated
from seng.estimators import Rows as RowsForm
from seng.estimators.paper_code import ReleasedLowRank, ReleasedRows
from seng.func.config import Settings
from seng.func.solvers import SOLVERS
from seng.linalg import (
    cholesky_coefficients,
    damped_power,
    gram_of_products,
    low_rank_products,
    metric_length,
)
from seng.per_sample import PerSampleGradients, Product, Rows, Shape, combine, merge, truncate
from seng.per_sample.sketched import sketch_rows, sketch_sides
from seng.per_sample.truncated import TOLERANCE
from seng.sketch import SKETCHES, draw
from seng.solve import EigenState
from seng.testing import loop_gradients

from ..unsupported import Slope

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
EXACT = 1e-9  # float64 rounding times the condition of the damped matrices used here, below 1e5
N, P = 6, 11  # samples, parameters
POWERS = (1.0, 0.5, 0.3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    assert float((got - expected).norm()) <= tolerance * float(expected.norm())


def columns(seed: int = 0) -> tuple[Tensor, Tensor]:
    """U [p, n] and the mean gradient g of the samples in it."""
    u = random(P, N, seed=seed) * torch.linspace(0.2, 2, N, dtype=torch.float64) / N**0.5
    return u, u.sum(1) / N**0.5


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def product_layer(s: int, d_in: int = 5, d_out: int = 4) -> tuple[Product, Tensor]:
    """A captured layer without bias, and its U [p, n] by definition."""
    io = Product(random(1, N, s, d_in, seed=1), random(1, N, s, d_out, seed=2))
    return io, torch.einsum("nsi,nso->noi", io.a[0], io.g[0]).flatten(1).T


class Run:
    """One step of a preconditioner on one linear layer, beside the dense quantities of the same batch."""

    def __init__(self, c: float = 1.0, **options: Any):
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3).double()
        x, y = random(N, 4, seed=3), random(N, 3, seed=4)
        parameters = list(self.model.parameters())
        loss = lambda part: c * (self.model(x[part]) - y[part]).square().sum(1).mean()  # noqa: E731
        rows = loop_gradients(lambda i: loss(slice(i, i + 1)), parameters, N)
        self.u, self.g = rows.T / N**0.5, rows.mean(0)
        self.k = self.u.T @ self.u
        settings: dict[str, Any] = {"estimator": "exact", "curvature_batch": "current", "trust": None, **options}
        self.pre = Preconditioner(self.model, **settings)
        loss(slice(0, N)).backward()
        self.pre.step()
        self.d = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        self.stats = self.pre.stats()[""]
        self.pre.close()


def test_equation_01_step_is_the_damped_inverse_fisher_times_the_gradient():
    run = Run(power=1.0, damping=0.3, damping_mode="absolute", scale="natural")
    fisher = torch.stack([torch.outer(u, u) for u in run.u.T * N**0.5]).mean(0)
    assert_close(run.u @ run.u.T, fisher)
    assert_close(run.d, torch.linalg.solve(fisher + 0.3 * torch.eye(len(fisher)).double(), run.g))


def test_equation_02_woodbury_needs_an_n_by_n_system():
    u, _ = columns()
    g, damping = random(P, seed=5), 0.3
    d = torch.linalg.solve(u @ u.T + damping * torch.eye(P).double(), g)
    shifted = u.T @ u + damping * torch.eye(N).double()
    assert_close((g - u @ torch.linalg.solve(shifted, u.T @ g)) / damping, d)
    assert_close((g + u @ cholesky_coefficients(torch.linalg.cholesky(shifted), u.T @ g)) / damping, d)


def test_equation_03_coefficients_solve_regularised_least_squares():
    (u, _), g, damping = columns(), random(P, seed=5), 0.3
    b = torch.linalg.solve(u.T @ u + damping * torch.eye(N).double(), u.T @ g)
    stacked = torch.cat([u, damping**0.5 * torch.eye(N).double()])
    assert_close(b, torch.linalg.lstsq(stacked, torch.cat([g, g.new_zeros(N)])[:, None]).solution[:, 0])


@pytest.mark.parametrize("s", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_equation_04_gram_of_products_needs_no_gradient_of_a_sample(s: int, bias: bool):
    a, g = random(N, s, 5, seed=1), random(N, s, 4, seed=2)
    wide = torch.cat([a, a.new_ones(N, s, 1)], 2) if bias else a
    rows = torch.einsum("nsi,nso->noi", wide, g).flatten(1)
    assert_close(gram_of_products(a, g, bias), rows @ rows.T)
    if s == 1:
        assert_close((wide[:, 0] @ wide[:, 0].T) * (g[:, 0] @ g[:, 0].T), rows @ rows.T)


def test_equation_05_products_with_u_are_those_of_a_layer():
    io, u = product_layer(s=3)
    factor = Operator().build(io, 1.0, torch.float64, generator())
    c, v = random(N, seed=6), random(4, 5, seed=7)
    a, g = io.a[0], io.g[0]  # [n, s, d]
    assert_close(torch.einsum("n,nso,nsi->oi", c, g, a).reshape(-1), u @ c)
    assert_close(torch.einsum("nso,oi,nsi->n", g, v, a), u.T @ v.reshape(-1))
    assert_close(factor.rmv(c)[0].reshape(-1), u @ c)
    assert_close(factor.mv((v,)), u.T @ v.reshape(-1))


@pytest.mark.parametrize("name", SKETCHES)
def test_equation_06_sketched_coefficients_solve_the_sketched_problem(name: str):
    (u, _), g, damping = columns(), random(P, seed=5), 0.3
    factor = sketch_rows(Rows((u.T.contiguous(),), ((P, 1),)), name, 7, generator())
    omega = factor.left(torch.eye(P, dtype=torch.float64)).T
    b = torch.linalg.solve(factor.gram() + damping * torch.eye(N).double(), factor.mv((g,)))
    stacked = torch.cat([omega @ u, damping**0.5 * torch.eye(N).double()])
    right = torch.cat([omega @ g, g.new_zeros(N)])[:, None]
    assert_close(b, torch.linalg.lstsq(stacked, right).solution[:, 0])
    assert_close(factor.rmv(b)[0][:, 0], u @ b)  # all of U, not its sketch


@pytest.mark.parametrize("name", SKETCHES)
def test_equation_07_sketches_are_unbiased(name: str):
    (u, _), one = columns(), generator()
    small = [draw(name, 5, one, u.square().sum(1))(u.T) for _ in range(500)]
    grams = torch.stack([x @ x.T for x in small])
    error = float(grams.var(0).sum() / len(grams)) ** 0.5
    assert float((grams.mean(0) - u.T @ u).norm()) <= 3 * error


@pytest.mark.parametrize("name", SKETCHES)
def test_equation_08_sketching_both_sides_is_a_kronecker_product(name: str):
    io, u = product_layer(s=2)
    full = Operator().build(io, 1.0, torch.float64, generator())
    factor = sketch_sides(full, name, 3, generator())  # type: ignore[arg-type]
    assert factor.right is not None
    left, right = (side(torch.eye(d, dtype=torch.float64)).T for side, d in ((factor.left, 4), (factor.right, 5)))
    omega = torch.kron(left, right)
    assert_close(factor.gram(), (omega @ u).T @ (omega @ u))
    v = random(4, 5, seed=7)
    assert_close(factor.mv((v,)), (omega @ u).T @ (omega @ v.reshape(-1)))


def test_equation_09_low_rank_products_are_near_the_truncated_svd():
    a, g = random(N, 12, 8, seed=1), random(N, 12, 7, seed=2)
    exact = torch.einsum("nso,nsi->noi", g, a)
    small_a, small_g = low_rank_products(a, g, 3, generator())
    got = torch.einsum("nro,nri->noi", small_g, small_a)
    best = torch.linalg.svdvals(exact)[:, 3:].square().sum().sqrt()
    assert small_a.shape == (N, 3, 8)
    assert best <= (got - exact).norm() <= 1.1 * best
    low = torch.cat([a[:, :3], a.new_zeros(N, 9, 8)], 1)  # gradients of rank 3
    small_a, small_g = low_rank_products(low, g, 3, generator())
    assert_close(torch.einsum("nro,nri->noi", small_g, small_a), torch.einsum("nso,nsi->noi", g, low))


@pytest.mark.parametrize("power", POWERS)
def test_equation_10_powers_come_from_the_eigenvalues_of_k(power: float):
    (u, _), g, damping = columns(), random(P, seed=5), 0.3
    values, vectors = torch.linalg.eigh(u.T @ u)
    shrunk = ((1 + values / damping) ** -power - 1) / values
    direction = damping**power * damped_power(u @ u.T, damping, power, g)
    assert_close(g + u @ vectors @ (shrunk * (vectors.T @ u.T @ g)), direction)
    assert_close(g + u @ EigenState(values, vectors).coefficients(u.T @ g, scalar(damping), power), direction)
    flat = EigenState(values * 0, vectors).coefficients(u.T @ g, scalar(damping), power)
    assert_close(flat, -power / damping * (u.T @ g))


@pytest.mark.parametrize("reweight", [True, False])
def test_equation_11_step_is_a_reweighted_mean_of_the_samples(reweight: bool):
    options = {"reweight": True, "refresh_every": 1, "distributed": "none"} if reweight else {}
    run = Run(power=1.0, damping=0.3, damping_mode="absolute", scale="gradient", **options)
    weights = 0.3 * torch.linalg.solve(run.k + 0.3 * torch.eye(N).double(), torch.ones(N).double())
    assert_close(run.d, run.u * N**0.5 @ weights / N)


def test_equation_12_metric_length_of_the_gradient_costs_nothing_more():
    (u, _), g, damping = columns(), random(P, seed=5), 0.3
    y = u.T @ g
    z = -torch.linalg.solve(u.T @ u + damping * torch.eye(N).double(), y)
    expected = g @ damped_power(u @ u.T, damping, 1.0, g)
    assert_close(metric_length(g @ g, y, z, scalar(damping), u.square().sum()) ** 2, expected)


@pytest.mark.parametrize("damping", [1e-6, 0.1, 10.0])
def test_equation_13_metric_length_of_the_samples_own_gradient_is_at_most_one(damping: float):
    u, g = columns()
    ones, k = torch.ones(N).double(), u.T @ u
    square = g @ damped_power(u @ u.T, damping, 1.0, g)
    assert_close(square, ones @ torch.linalg.solve(k + damping * torch.eye(N).double(), k @ ones) / N, 1e-6)
    assert float(square) <= 1


@pytest.mark.parametrize("trust", [0.01, 0.5, 100.0])
def test_equation_14_direction_is_shortened_to_the_cap(trust: float):
    free, capped = Run(), Run(trust=trust)
    q = float(free.g @ damped_power(free.u @ free.u.T, free.stats.damping, 1.0, free.g)) ** 0.5
    assert_close(capped.d, free.d * min(1.0, trust / q))


def test_equation_15_relative_damping_is_a_multiple_of_the_mean_eigenvalue():
    run = Run(damping=0.3)
    assert run.stats.damping == pytest.approx(0.3 * float(run.k.trace()) / N, rel=EXACT)


@pytest.mark.parametrize("power", POWERS)
def test_equation_16_directions_follow_the_scale_of_the_loss(power: float):
    for scale, exponent in (("natural", 1 - 2 * power), ("gradient", 1.0)):
        plain, scaled = (Run(c, power=power, scale=scale) for c in (1.0, 7.0))
        assert_close(scaled.d, 7.0**exponent * plain.d)


@pytest.mark.parametrize("power", POWERS)
def test_equation_17_directions_descend_and_are_bounded(power: float):
    run = Run(power=power, scale="natural", damping=0.3, damping_mode="absolute")
    top = float(torch.linalg.eigvalsh(run.k)[-1])
    assert float(run.g @ run.d) >= (0.3 + top) ** -power * float(run.g @ run.g)
    assert float(run.d.norm()) <= 0.3**-power * float(run.g.norm())


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("damping", [1.0, 1e2, 1e4])
def test_equation_18_large_damping_gives_the_gradient(power: float, damping: float):
    run = Run(power=power, scale="gradient", damping=damping, damping_mode="absolute")
    top = float(torch.linalg.eigvalsh(run.k)[-1])
    assert float((run.d - run.g).norm()) <= power * top / damping * float(run.g.norm())


def test_equation_19_effective_dimension_is_a_trace():
    run = Run(damping=0.3)
    trace = torch.linalg.solve(run.k + run.stats.damping * torch.eye(N).double(), run.k).trace()
    assert run.stats.effective_dimension == pytest.approx(float(trace), rel=EXACT)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("trust", [None, 1.0])
@pytest.mark.parametrize("loss_scale", [1e-3, 1.0, 1e3])
def test_equation_20_uncovered_parameters_move_at_the_pace_of_the_mean_damping_within_the_trust_cap(
    power: float, trust: float | None, loss_scale: float
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Slope(), nn.Linear(5, 3)).double()
    pre = Preconditioner(model, power=power, scale="natural", trust=trust)
    (loss_scale * model(random(N, 4)).square().sum(1).mean()).backward()
    slope = model.get_parameter("1.weight")
    assert slope.grad is not None
    before = slope.grad.clone()
    pre.step()
    dampings = [stats.damping for stats in pre.stats().values()]
    damping = sum(dampings) / len(dampings)
    pace = damping**-power
    assert (pace > 1) == (loss_scale < 10)
    within = min(1.0, pace, 1 / float(damping ** (power - 0.5) * before.norm()))
    assert_close(slope.grad, (pace if trust is None else within) * before)


def test_equation_21_merging_puts_columns_side_by_side():
    (one, _), (two, _) = columns(1), columns(2)
    factors = [Rows((u.T.contiguous(),), ((P, 1),)) for u in (one, two)]
    v = merge(factors[0], factors[1], 0.3).to_dense()
    assert_close(v @ v.T, 0.3 * one @ one.T + 0.7 * two @ two.T)


@pytest.mark.parametrize("power", POWERS)
def test_equation_22_truncation_changes_a_direction_by_its_tolerance(power: float):
    u = torch.linalg.qr(random(P, N)).Q * torch.logspace(0, -5, N, dtype=torch.float64)
    g, damping = u @ random(N, seed=8) + 1e-3 * random(P, seed=9), 1.0
    full = Rows((u.T.contiguous(),), ((P, 1),))
    small, values = truncate(full, scalar(damping))
    assert 0 < small.n < N
    assert_close(small.gram(), values.diag())
    dense = small.to_dense()
    d = damped_power(u @ u.T, damping, power, g)
    error = float((damped_power(dense @ dense.T, damping, power, g) - d).norm() / d.norm())
    assert error <= (1 + TOLERANCE) ** power - 1 <= power * TOLERANCE
    assert_close(combine(full, torch.eye(N).double()).to_dense(), u)


@pytest.mark.parametrize("kept", [4, 18])
def test_equation_23_expanded_positions_are_samples_of_their_own(kept: int):
    io, _ = product_layer(s=3)
    m = torch.einsum("nsi,nso->nsoi", io.a[0], io.g[0]).reshape(N * 3, -1)
    expanded, total = io.expanded(kept, generator())
    u = Operator().build(expanded, total**0.5, torch.float64, generator()).to_dense()
    assert total == N * 3
    assert u.shape[1] == kept
    expected = m.T * total**0.5 * (total / kept) ** 0.5
    nearest = torch.cdist(u.T, expected.T).argmin(1)
    assert len(set(nearest.tolist())) == kept  # every position at most once, each with the same chance
    assert_close(u, expected[:, nearest])
    if kept == total:
        assert_close(u @ u.T, total * m.T @ m)


def test_equation_24_ranks_take_the_mean_of_their_directions():
    mine, other = [random(3, 2), random(4)], [random(3, 2, seed=1), random(4, seed=2)]
    expected = [(a + b) / 2 for a, b in zip(mine, other, strict=True)]

    class TwoRanks(Communicator):
        rank, world, dtype = 0, 2, None

        def __init__(self) -> None:
            pass

        def start_sum(self, flat: Tensor, purpose: str):
            return lambda: flat + torch.cat([x.reshape(-1) for x in other])

    updates = Local(wire=TwoRanks()).updates({"layer": mine})
    updates.ready("layer", written=True)
    updates.finish({"layer": 2})
    for got, wanted in zip(mine, expected, strict=True):
        assert_close(got, wanted)


def test_equation_25_learning_rate_falls_as_a_power():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = PolynomialLR(optimizer, total_steps=8, power=6.0)
    for t in range(10):
        assert math.isclose(optimizer.param_groups[0]["lr"], 0.3 * max(0.0, 1 - t / 8) ** 6, abs_tol=1e-15)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("implicit", [True, False])
def test_equation_26_released_code_sees_a_smaller_damping(implicit: bool):
    io, _ = product_layer(s=1)
    q = 3
    forms: tuple[Form, Form] = (
        (ReleasedLowRank(rows=q), LowRank(rows=q)) if implicit else (ReleasedRows(rows=q), Sketched(rows=q))
    )
    theirs, ours = (form.build(io, 1.0, torch.float64, generator()) for form in forms)
    c = (5 / q) * (4 / q) if implicit else 20 / q
    v = (random(4, 5, seed=7),)
    assert_close(theirs.gram(), c * ours.gram())
    assert_close(theirs.mv(v), c * ours.mv(v))
    damping, eye = 0.3, torch.eye(N).double()
    b = torch.linalg.solve(theirs.gram() + damping * eye, theirs.mv(v))
    assert_close(b, torch.linalg.solve(ours.gram() + damping / c * eye, ours.mv(v)))


def test_equation_27_released_code_mixes_the_samples_of_implicit_layers():
    io, u = product_layer(s=2)
    b = random(N, seed=6)
    got = ReleasedLowRank(rows=3).build(io, 1.0, torch.float64, generator()).rmv(b)[0]
    root = b.abs().sqrt()
    expected = torch.zeros(4, 5, dtype=torch.float64)
    for k in range(2):
        left = sum(root[i] * io.g[0, i, k] for i in range(N))
        right = sum(b[j] * io.a[0, j, k] for j in range(N)) / root.sum()
        expected += torch.outer(torch.as_tensor(left), torch.as_tensor(right))
    assert_close(got, expected)
    assert (got.reshape(-1) - u @ b).norm() > 0.1 * (u @ b).norm()


# -- bounds for sketched directions: every estimator of the table, every sketch ----------------------------------------

ROUNDING = 1e-9  # relative, of bounds that some draws attain
EXACT_FORMS = ("operator", "rows", "truncated")
SKETCHED_FORMS = ("sketched-rows", "implicit")


def test_bounds_are_stated_for_every_estimator_of_the_table():
    size = Shape("product", n=8, p=20, s=3, d_in=5, d_out=4)
    found = {form.name for kind in ESTIMATORS.values() for form in kind().forms(size)}
    assert {*EXACT_FORMS, *SKETCHED_FORMS, "paper-code"} == found


def captured(positions: int, bias: bool, groups: int, seed: int, spread: float) -> Product:
    """A captured layer whose samples are of very different sizes."""
    sizes = torch.logspace(0, -spread, N, dtype=torch.float64)[:, None, None]
    a, g = random(groups, N, positions, 5, seed=seed), random(groups, N, positions, 4, seed=seed + 1)
    return Product(a, sizes * g, bias)


def factor_and_gradient(
    form: str, sketch: str, io: Product, size: int, rank: int, seed: int
) -> tuple[PerSampleGradients, Tensor]:
    forms: tuple[Form, ...] = (Operator(), RowsForm(), Truncated(), Sketched(sketch, size), LowRank(rank, size, sketch))
    (chosen,) = (known for known in forms if known.name == form)
    factor = chosen.build(io, N**-0.5, torch.float64, generator(seed))
    p = sum(rows * columns for rows, columns in factor.shapes)
    u = factor.to_dense()
    return factor, u @ random(N, seed=seed + 2) + 0.3 * float(u.norm()) / p**0.5 * random(p, seed=seed + 3)


draws = {
    "positions": st.integers(1, 3),
    "bias": st.booleans(),
    "groups": st.integers(1, 2),
    "seed": st.integers(0, 10**6),
    "spread": st.floats(0, 3),
    "damping": st.floats(-3, 2).map(lambda x: 10.0**x),
}


@pytest.mark.parametrize("form", EXACT_FORMS)
@pytest.mark.parametrize("power", POWERS)
@settings(max_examples=10, deadline=None)
@given(**draws)
def test_directions_of_exact_estimators_keep_bound_17_over_random_draws(
    form: str, power: float, positions: int, bias: bool, groups: int, seed: int, spread: float, damping: float
) -> None:
    factor, g = factor_and_gradient(form, "uniform", captured(positions, bias, groups, seed, spread), 1, 1, seed)
    values, vectors = torch.linalg.eigh(factor.gram())
    absolute = damping * float(values.sum()) / N
    if form == "truncated":
        factor, values = truncate(factor, scalar(absolute))
        vectors = torch.eye(len(values), dtype=torch.float64)
    grads = tuple(
        part.view(shape) for part, shape in zip(g.split([r * c for r, c in factor.shapes]), factor.shapes, strict=True)
    )
    y = EigenState(values.clamp(min=0), vectors).coefficients(factor.mv(grads), scalar(absolute), power)
    d = (g + torch.cat([part.reshape(-1) for part in factor.rmv(y)])) / absolute**power
    trace = float(values.sum())  # c from damping and trace, as the largest eigenvalue is at most that
    assert float(g @ d) >= (1 - ROUNDING) * (absolute + trace) ** -power * float(g @ g)
    assert float(d.norm()) <= (1 + ROUNDING) * absolute**-power * float(g.norm())


def test_equation_28_embedding_error_is_the_worst_change_of_a_squared_length():
    factor, g = factor_and_gradient("sketched-rows", "gaussian", captured(1, True, 1, 0, 1.0), 12, 1, 0)
    found, omega = embedding(factor, g, 0.3), dense_sketch(factor)
    space = torch.cat([factor.to_dense(), g[:, None]], 1)
    changes = []
    for k in range(2000):
        v = space @ random(N + 1, seed=k)
        changes.append(abs(float((omega @ v).square().sum() / v.square().sum()) - 1))
    assert max(changes) <= found.error * (1 + ROUNDING)
    q = torch.linalg.qr(space).Q
    values, vectors = torch.linalg.eigh(q.T @ omega.T @ omega @ q)
    worst = q @ vectors[:, (values - 1).abs().argmax()]
    assert abs(float((omega @ worst).square().sum()) - 1) == pytest.approx(found.error, rel=1e-6)
    assert_close((omega @ factor.to_dense()).T @ (omega @ factor.to_dense()), factor.gram())
    top = float(torch.linalg.eigvalsh(factor.gram())[-1])
    assert found.share == pytest.approx(top / (top + 0.3))


def check_sketched(form: str, sketch: str, io: Product, size: int, rank: int, seed: int, damping: float) -> bool:
    """Assert (29) and (30) of a draw; return whether the bounds say anything."""
    factor, g = factor_and_gradient(form, sketch, io, size, rank, seed)
    u = factor.to_dense()
    absolute = damping * float(u.square().sum()) / N
    found = embedding(factor, g, absolute)
    d = direction(factor, g, absolute)
    exact = damped_power(u @ u.T, absolute, 1.0, g)
    if found.error < 1:
        assert float(g @ d) >= found.least * float(g @ g) - ROUNDING * float(g.norm() * d.norm())
        assert float(d.norm()) <= (1 + ROUNDING) * found.largest * float(g.norm())
        assert float((d - exact).norm()) <= (1 + ROUNDING) * found.distance * float(exact.norm()) + ROUNDING
    return found.least > 0


@pytest.mark.parametrize("form", SKETCHED_FORMS)
@pytest.mark.parametrize("sketch", SKETCHES)
@settings(max_examples=10, deadline=None)
@given(size=st.integers(2, 30), rank=st.integers(1, 3), **draws)
def test_equation_29_sketched_directions_keep_their_bounds(
    form: str, sketch: str, size: int, rank: int, positions: int, bias: bool, groups: int, seed: int, spread: float,
    damping: float,
) -> None:  # fmt: skip
    io = captured(positions, bias, groups, seed, spread)
    check_sketched(form, sketch, io, size, rank, seed, damping)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_equation_29_says_something_for_every_sketch(sketch: str):
    u, g = samples(512, N, 0)
    full = Rows((u.T.contiguous(),), ((512, 1),))
    damping = 10 * float(u.square().sum()) / N
    factor = sketch_rows(full, sketch, 384, generator())
    found, d = embedding(factor, g, damping), direction(factor, g, damping)
    assert 0.5 / damping < found.least <= found.largest < 2 / damping
    assert float(g @ d) >= found.least * float(g @ g)
    assert float(d.norm()) <= found.largest * float(g.norm())


def test_equation_30_is_not_kept_by_the_released_code():
    """Directions of implicit layers are far off even where nothing is sketched or compressed."""
    away = []
    for form in (ReleasedLowRank(5, 20), LowRank(5, 20)):
        for seed in range(5):
            io = captured(2, False, 1, seed, 1.0)
            factor = form.build(io, N**-0.5, torch.float64, generator(seed))
            g = torch.einsum("nsi,nso->oi", io.a[0], io.g[0]).reshape(-1) / N
            u = torch.einsum("nsi,nso->oin", io.a[0], io.g[0]).flatten(0, 1) / N**0.5
            damping = 0.1 * float(u.square().sum()) / N
            exact = damped_power(u @ u.T, damping, 1.0, g)
            away.append((form.name, float((direction(factor, g, damping) - exact).norm() / exact.norm())))
    assert min(error for form, error in away if form == "paper-code") > 0.1
    assert max(error for form, error in away if form == "implicit") < 1e-6


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return sketch_study(sizes=(32, 512), p=1024, n=6, draws=3)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_equation_30_errors_of_the_study_stay_below_their_bound(study: dict[str, Any], sketch: str):
    small, large = (row for row in study["rows"] if row["sketch"] == sketch)
    assert (small["size"], large["size"]) == (32, 512)
    assert small["violations"] == large["violations"] == 0
    assert large["error"] < small["error"]
    assert large["error"] <= large["bound"] < 1


# -- sketches of samples: every solver of the table --------------------------------------------------------------------


def test_bounds_are_stated_for_every_solver_that_sketches():
    assert {*BOUNDS, "exact"} == set(SOLVERS)


def check_solver(name: str, n: int, more: int, q: int, iterations: int, damping: float, seed: int) -> float:
    """Assert that a direction keeps its bound, and return how much of it the error is."""
    system = system_of(n, n + more, damping, seed)
    given = {"solver": name, "rank": min(q, n - 1), "iterations": iterations, "tolerance": 1e-15}
    c, bound = solved(system, Settings.build("test", given), seed)
    length = system.distance(torch.zeros(n, dtype=torch.float64))
    error = system.distance(c)
    assert error <= bound * (1 + ROUNDING) + ROUNDING * length
    return error / bound


SYSTEMS: dict[str, Any] = {
    "n": st.integers(2, 24), "more": st.integers(0, 8), "q": st.integers(1, 23), "damping": st.floats(1e-3, 1.0),
    "seed": st.integers(0, 10**6),
}  # fmt: skip


@settings(deadline=None)
@given(**SYSTEMS)
def test_equation_36_sketch_and_solve_keeps_its_bound(n: int, more: int, q: int, damping: float, seed: int):
    check_solver("gaussian", n, more, q, 0, damping, seed)


@settings(deadline=None)
@given(**SYSTEMS)
def test_equation_37_nystrom_alone_keeps_its_bound(n: int, more: int, q: int, damping: float, seed: int):
    check_solver("nystrom", n, more, q, 0, damping, seed)


@settings(deadline=None)
@given(iterations=st.integers(1, 6), **SYSTEMS)
def test_equation_38_conjugate_gradients_keep_their_bound(
    iterations: int, n: int, more: int, q: int, damping: float, seed: int
):
    check_solver("nystrom", n, more, q, iterations, damping, seed)


@pytest.mark.parametrize(("name", "iterations", "share"), [("gaussian", 0, 0.1), ("nystrom", 0, 1e-4)])
def test_equations_36_and_37_are_not_far_from_what_happens(name: str, iterations: int, share: float):
    assert max(check_solver(name, 48, 0, 40, iterations, 0.1, seed) for seed in range(5)) > share


def test_equation_36_has_nothing_to_say_of_coarse_sketches():
    coarse = Settings.build("test", {"solver": "gaussian", "rank": 2})
    assert solved(system_of(40, 50, 1e-3, 0), coarse, 0)[1] == float("inf")


def test_solver_study_stays_below_its_bounds():
    found = solver_study(sizes=(16, 96), n=128, p=130, draws=3)["rows"]
    assert len(found) == 2 * len(SOLVED)
    assert not any(row["violations"] for row in found)
    for small, large in zip(found[::2], found[1::2], strict=True):
        assert large["error"] < small["error"]
        assert large["bound"] < (small["bound"] or float("inf"))


# -- noise and diminishing steps ---------------------------------------------------------------------------------------


def test_equation_31_expected_loss_falls_as_promised():
    """One step from a point, averaged over many batches for gradient and curvature."""
    fit, damping, lr, batch = Fit.draw(60, 4, 0), 0.3, 0.5, 5
    w = 0.5 * random(4, seed=1)

    def gradients(at: Tensor) -> Tensor:
        misfit = (fit.x @ at - fit.y) / WIDTH
        return (2 * misfit / (1 + misfit.square()).square() / WIDTH)[:, None] * fit.x

    rows = gradients(w)
    assert float(rows.norm(dim=1).max()) <= LARGEST
    one, after, slopes = generator(5), [], []
    for _ in range(1500):
        held, fresh = (rows[torch.randint(len(rows), (batch,), generator=one)] for _ in range(2))
        fisher = held.T @ held / batch + damping * torch.eye(4, dtype=torch.float64)
        d = torch.linalg.solve(fisher, fresh.mean(0))
        after.append(fit.loss((fit.x @ (w - lr * d))[:, None]))
        slopes.append(d)
    whole, before = rows.mean(0), fit.loss((fit.x @ w)[:, None])
    least, largest = 1 / (damping + LARGEST**2), 1 / damping
    promised = before - least * lr * whole @ whole + LIPSCHITZ / 2 * (lr * largest * LARGEST) ** 2
    assert float(torch.stack(after).mean()) <= float(promised)
    assert float(whole @ torch.stack(slopes).mean(0)) >= least * float(whole @ whole)


def test_equation_32_least_gradient_goes_to_zero_at_the_promised_order():
    found = stationarity_study(steps=250, seeds=2)
    assert found["largest_ratio"] <= 1
    assert found["order"] <= found["predicted_order"]
    k = torch.tensor(found["k"], dtype=torch.float64)
    bound = Constants(2.0, 3.0, 0.7).bound(0.5 / k.new_tensor(range(1, 10**4 + 1)) ** 0.6)
    assert float(bound[-1] / bound[999]) == pytest.approx(10**-0.4, rel=0.15)  # sums come near their order slowly


# -- wide networks -----------------------------------------------------------------------------------------------------


def test_equation_33_kernel_comes_to_its_limit():
    task = Task.draw(8, 5, 0.5, 0.1, 0)
    errors = []
    for width in (2**8, 2**11, 2**14):
        network = Network.draw(width, 5, 1)
        errors.append(float((network.kernel(task.x) - limiting_kernel(task.x)).norm() / limiting_kernel(task.x).norm()))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 4 * 2**-7  # a few standard deviations of a mean over 2^14 units
    small = Network.draw(64, 5, 2)
    rows = torch.func.jacrev(lambda w: small.values(w, task.x))(small.weights).flatten(1)  # type: ignore[union-attr]
    assert_close(rows @ rows.T, small.kernel(task.x))


def test_equation_34_rates_know_the_step_length_and_the_condition():
    rows = [experiment(2048, 1.0, shortest, None, 8, 8, 0) for shortest in (1.0, 0.01)]
    assert rows[1].condition > 1e3 * rows[0].condition
    for row in rows:
        assert row.natural == pytest.approx(1 - LENGTH, abs=0.01)
        assert row.descent is not None
    assert rows[0].descent == pytest.approx(rows[0].slowest, abs=0.01)
    assert rows[1].descent is not None
    assert rows[1].descent > 0.99
    narrow = experiment(64, 1.0, 1.0, None, 8, 8, 0)
    assert abs(narrow.natural - (1 - LENGTH)) > 3 * abs(rows[0].natural - (1 - LENGTH))


@pytest.mark.parametrize("q", [2, 4])
def test_equation_35_sketched_steps_contract_as_promised(q: int):
    """The linear law alone, averaged over draws of the sketch."""
    task = Task.draw(8, 5, 1.0, 0.3, 0)
    k, one = limiting_kernel(task.x), generator(3)
    share = projection_share(k, q, 4000, 0)
    for r in (random(8, seed=1), torch.linalg.eigh(k).eigenvectors[:, 0]):
        ratios = []
        for _ in range(800):
            s = torch.randn(q, 8, generator=one, dtype=torch.float64)
            left = r - LENGTH * k @ s.T @ torch.linalg.solve(s @ k @ s.T, s @ r)
            ratios.append(float(left @ torch.linalg.solve(k, left) / (r @ torch.linalg.solve(k, r))))
        mean = sum(ratios) / len(ratios)
        assert mean <= 1 - (2 * LENGTH - LENGTH**2) * share + 0.02  # three standard errors of both means
    assert mean == pytest.approx(1 - (2 * LENGTH - LENGTH**2) * share, abs=0.02)  # the least eigenvector attains it
    row = experiment(2048, 1.0, 1.0, q, 8, 8, 0)
    assert row.natural <= row.predicted < 1


def test_every_numbered_equation_has_its_test():
    numbers = [int(k) for k in re.findall(r"\\tag\{(\d+)\}", PAGE.read_text(encoding="utf-8"))]
    tested = [int(k) for name in globals() for k in re.findall(r"^test_equation_(\d\d)_", name)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sorted(set(tested)) == numbers
