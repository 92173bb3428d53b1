"""Random mixtures of rows in place of the rows: sketch and solve."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...sketch import gaussian
from ..config import Settings
from ..gram import InPlaceFactor
from ..rows import Rows
from .base import Damping, Solver
from .sketched import sketched


class Gaussian(Solver):
    """c = S^T (S K S^T + lambda I)^-1 S r, with S [q, n] of independent N(0, 1/q) entries, E[S^T S] = I.

    It minimises |S (J d - r)|^2 + lambda |d|^2, the least squares problem seen through S: cheap, but for q well below
    the number of directions that matter the solution is rough, which ``solve_error`` says.

    Attributes:
        sketch: S.

    Cost: n p q + q^2 p multiply-adds and rows made once; (n + p + q) q numbers.
    Source: PAPER section 2, in sample space; Johnson and Lindenstrauss (1984).
    """

    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator):
        scores = torch.ones(rows.n)
        drawn = gaussian(rows.n, settings.rank, generator, scores).matrix
        self.sketch = drawn.to(rows.leaves[0].device, settings.solve_dtype)
        mixed = sketched(rows, self.sketch)
        self.rows, self._k = rows, mixed @ mixed.mT
        self.damp(damping)

    def damp(self, damping: Damping) -> None:
        """Cost: q^3 / 3 multiply-adds."""
        self.damping = damping.at(self.rows)
        self._factor = InPlaceFactor(self._k.clone(), self.damping)
        self.rungs = self._factor.rungs

    def solve(self, r: Float[Tensor, " n"], rough: bool = False) -> Float[Tensor, " n"]:
        return self.rows.ranks.broadcast(self.sketch.mT @ self._factor.solve(self.sketch @ r))
