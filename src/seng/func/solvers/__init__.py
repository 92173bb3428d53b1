"""Solvers of (K + lambda I) c = r, exact or through a sketch. One file each; adding one is a line in the table."""

from __future__ import annotations

from .base import Damping, Solution, Solver
from .exact import Exact
from .gaussian import Gaussian
from .least_squares import LeastSquares
from .nystrom import Nystrom

__all__ = ["SOLVERS", "Damping", "Exact", "Gaussian", "LeastSquares", "Nystrom", "Solution", "Solver"]

SOLVERS: dict[str, type[Solver]] = {"exact": Exact, "nystrom": Nystrom, "gaussian": Gaussian}
