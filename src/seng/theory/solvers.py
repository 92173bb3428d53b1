"""Bounds for directions of ``seng.func`` whose n x n system is sketched: in sample space, not in that of parameters.

Legend: J [n, p], K = J J^T, r [n], lambda damping; c = (K + lambda I)^-1 r, d = J^T c; distances are those of

    |x|_F^2 = x^T (J^T J + lambda I) x.

Each bound is a multiple of |r - J d| = lambda |c|, what the exact direction leaves of the residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..func.config import Settings
from ..func.problem import problem_of
from ..func.solvers import SOLVERS, Damping, Gaussian, Nystrom, Solver
from ..func.trees import params_of
from ..sketch import gaussian

DTYPE = torch.float64
ROUNDING = 1e-11  # relative, of directions that conjugate gradients have made exact


@dataclass(frozen=True)
class System:
    """Rows and residuals of a linear problem, and its exact solution.

    Args:
        j: J.
        r: Residuals.
        damping: lambda.
    """

    j: Float[Tensor, "n p"]
    r: Float[Tensor, " n"]
    damping: float

    @property
    def k(self) -> Float[Tensor, "n n"]:
        """K."""
        return self.j @ self.j.mT

    @property
    def exact(self) -> Float[Tensor, " n"]:
        """C."""
        return torch.linalg.solve(self.k + self.damping * torch.eye(len(self.r), dtype=DTYPE), self.r)

    def distance(self, c: Float[Tensor, " n"]) -> float:
        """Return |J^T c - d|_F."""
        x = self.j.mT @ (c - self.exact)
        return float(((self.j @ x).square().sum() + self.damping * x.square().sum()).sqrt())

    @property
    def left(self) -> float:
        """|r - J d|."""
        return self.damping * float(self.exact.norm())

    def embedding(self, s: Float[Tensor, "q n"]) -> float:
        """Return epsilon = |W^T (S^T S - I) W| of a sketch S.

        W = [J (J^T J + lambda I)^-1/2, (r - J d) / |r - J d|].
        """
        values, vectors = torch.linalg.eigh(self.k)
        damped = vectors * (values.clamp(min=0) / (values + self.damping)).sqrt()
        w = torch.cat([damped, (self.exact / self.exact.norm())[:, None]], 1)
        seen = s @ w
        return float(torch.linalg.matrix_norm(seen.mT @ seen - w.mT @ w, 2))


def gaussian_bound(system: System, solver: Gaussian, s: Float[Tensor, "q n"]) -> float:
    """Return the bound for sketch and solve: epsilon / (1 - epsilon) |r - J d|; infinite for epsilon >= 1."""
    error = system.embedding(s)
    return error / (1 - error) * system.left if error < 1 else float("inf")


def nystrom_bound(system: System, solver: Nystrom, s: Float[Tensor, "q n"]) -> float:
    """Return the bound for the preconditioner alone, or for conjugate gradients behind it.

    With e the least eigenvalue that K^ keeps, t = trace(K) - trace(K^) and m = max(t, e), alone:
    m / lambda (1 + m / (lambda + e)) |r - J d|. After k steps, x = 1 + (e + t) / lambda bounding the condition number:
    2 ((sqrt(x) - 1) / (sqrt(x) + 1))^k |K|^1/2 |c|_{K + lambda I}.
    """
    least = float(solver.floor) - solver.damping
    if not solver.iterations:
        missed = max(solver.tail, least)
        return missed / system.damping * (1 + missed / (system.damping + least)) * system.left
    root = (1 + (least + solver.tail) / system.damping) ** 0.5
    energy = float(torch.dot(system.exact, system.r)) * float(torch.linalg.matrix_norm(system.k, 2))
    return 2 * ((root - 1) / (root + 1)) ** solver.iterations * energy**0.5


BOUNDS: dict[str, Callable[[System, Any, Tensor], float]] = {"gaussian": gaussian_bound, "nystrom": nystrom_bound}


def solved(system: System, settings: Settings, seed: int) -> tuple[Solver, Float[Tensor, " n"], float]:
    """Return a solver made for a system, its coefficients, and the bound on their direction's distance."""
    w = torch.zeros(system.j.shape[1], dtype=DTYPE)
    params = params_of(w, "solved()")
    problem = problem_of(lambda w, row: row @ w, params, system.j, settings, 0, "solved()")
    rows = replace(problem.linearise().rows, scales=[1.0])
    damping = Damping(system.damping, relative=False)
    solver = SOLVERS[settings.solver](rows, damping, settings, torch.Generator().manual_seed(seed))
    c = solver.solve(system.r)
    n, generator = len(system.r), torch.Generator().manual_seed(seed)
    s = gaussian(n, settings.rank, generator, torch.ones(n)).matrix.to(DTYPE)  # as the solver drew it
    return solver, c, BOUNDS[settings.solver](system, solver, s)


def system_of(n: int, p: int, damping: float, seed: int) -> System:
    """Return rows whose singular values fall as k^-2, and residuals that they explain in part."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.linalg.qr(torch.randn(size, n, generator=generator, dtype=DTYPE)).Q for size in (n, p)]
    j = sides[0] * torch.arange(1, n + 1, dtype=DTYPE) ** -2.0 @ sides[1].mT
    r = j @ torch.randn(p, generator=generator, dtype=DTYPE) + 0.05 * torch.randn(n, generator=generator, dtype=DTYPE)
    return System(j, r, damping * float(j.square().sum()) / n)


@dataclass(frozen=True)
class Row:
    """Medians over draws of one solver with sketches of one size.

    Args:
        sketch: The solver's name, and how many steps refine it.
        size: Columns q.
        error: |d - exact d|_F / |exact d|_F.
        bound: The same of the bound, None where there is none.
        violations: Draws in which the error exceeded the bound.
    """

    sketch: str
    size: int
    error: float
    bound: float | None
    violations: int


SOLVED = {
    "gaussian": {"solver": "gaussian"},
    "nystrom, alone": {"solver": "nystrom", "iterations": 0},
    "nystrom, 4 steps": {"solver": "nystrom", "iterations": 4},
}  # fmt: skip


def solver_study(
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256), n: int = 512, p: int = 1024, draws: int = 25,
    damping: float = 0.01, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure the error of directions against the size of every sketch in sample space, beside its bound.

    Args:
        sizes: Columns of the sketch.
        n: Rows.
        p: Parameters, at least n.
        draws: Of each sketch at each size.
        damping: Relative to the mean eigenvalue of K.
        seed: Of all draws.

    Returns:
        Rows, as plain values.
    """
    system, rows = system_of(n, p, damping, seed), []
    length = system.distance(torch.zeros(n, dtype=DTYPE))
    for name, given in SOLVED.items():
        for size in sizes:
            settings = Settings.build("solver_study()", {"rank": size, "tolerance": 1e-15, **given})
            found = []
            for draw in range(draws):
                _, c, bound = solved(system, settings, seed + 1 + draw)
                found.append((system.distance(c) / length, bound / length))
            bound = median(bound for _, bound in found)
            rows.append(Row(
                name, size, median(error for error, _ in found), bound if bound < float("inf") else None,
                sum(error > bound * (1 + 1e-9) + ROUNDING for error, bound in found),
            ))  # fmt: skip
    return {"samples": n, "parameters": p, "damping": damping, "draws": draws, "rows": [asdict(row) for row in rows]}
