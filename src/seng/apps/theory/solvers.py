"""Bounds for directions of ``seng.func`` whose n x n system is sketched: in sample space, not in that of parameters.

Legend: J [n, p], K = J J^T, r [n], lambda damping; c = (K + lambda I)^-1 r, d = J^T c; distances are those of

    |x|_F^2 = x^T (J^T J + lambda I) x.

Each bound is a multiple of |r - J d| = lambda |c|, what the exact direction leaves of the residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...func.config import Settings
from ...func.problem import problem_of
from ...func.solvers import SOLVERS, Damping, Gaussian, Nystrom
from ...func.trees import params_of
from .sketches import Row

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

    @cached_property
    def k(self) -> Float[Tensor, "n n"]:
        """K."""
        return self.j @ self.j.mT

    @cached_property
    def exact(self) -> Float[Tensor, " n"]:
        """C."""
        return torch.linalg.solve(self.k + self.damping * torch.eye(len(self.r), dtype=DTYPE), self.r)

    def distance(self, c: Float[Tensor, " n"]) -> float:
        """Return |J^T c - d|_F."""
        x = self.j.mT @ (c - self.exact)
        return float(((self.j @ x).square().sum() + self.damping * x.square().sum()).sqrt())

    @cached_property
    def left(self) -> float:
        """|r - J d|."""
        return self.damping * float(self.exact.norm())

    @cached_property
    def seen(self) -> Float[Tensor, "n w"]:
        """W = [J (J^T J + lambda I)^-1/2, (r - J d) / |r - J d|]."""
        values, vectors = torch.linalg.eigh(self.k)
        damped = vectors * (values.clamp(min=0) / (values + self.damping)).sqrt()
        return torch.cat([damped, (self.exact / self.exact.norm())[:, None]], 1)

    def embedding(self, s: Float[Tensor, "q n"]) -> float:
        """Return epsilon = |W^T (S^T S - I) W| of a sketch S."""
        short = s @ self.seen
        return float(torch.linalg.matrix_norm(short.mT @ short - self.seen.mT @ self.seen, 2))


def gaussian_bound(system: System, solver: Gaussian) -> float:
    """Return the bound for sketch and solve: epsilon / (1 - epsilon) |r - J d|; infinite for epsilon >= 1."""
    error = system.embedding(solver.sketch)
    return error / (1 - error) * system.left if error < 1 else float("inf")


def nystrom_bound(system: System, solver: Nystrom) -> float:
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


BOUNDS: dict[str, Callable[[System, Any], float]] = {"gaussian": gaussian_bound, "nystrom": nystrom_bound}


def solved(system: System, settings: Settings, seed: int) -> tuple[Float[Tensor, " n"], float]:
    """Return a solver's coefficients, and the bound on their direction's distance."""
    w = torch.zeros(system.j.shape[1], dtype=DTYPE)
    problem = problem_of(lambda w, row: row @ w, params_of(w, "solved()"), system.j, settings, 0, "solved()")
    rows = replace(problem.linearise().rows, scales=[1.0])
    damping = Damping(system.damping, relative=False)
    solver = SOLVERS[settings.solver](rows, damping, settings, torch.Generator().manual_seed(seed))
    return solver.solve(system.r), BOUNDS[settings.solver](system, solver)


def system_of(n: int, p: int, damping: float, seed: int) -> System:
    """Return rows whose singular values fall as k^-2, and residuals that they explain in part."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.linalg.qr(torch.randn(size, n, generator=generator, dtype=DTYPE)).Q for size in (n, p)]
    j = sides[0] * torch.arange(1, n + 1, dtype=DTYPE) ** -2.0 @ sides[1].mT
    r = j @ torch.randn(p, generator=generator, dtype=DTYPE) + 0.05 * torch.randn(n, generator=generator, dtype=DTYPE)
    return System(j, r, damping * float(j.square().sum()) / n)


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
                c, bound = solved(system, settings, seed + 1 + draw)
                found.append((system.distance(c) / length, bound / length))
            rows.append(asdict(Row.of(name, size, found, ROUNDING)))
    return {"samples": n, "parameters": p, "damping": damping, "draws": draws, "rows": rows}
