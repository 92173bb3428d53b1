"""Few columns in place of all samples: eigendirections far below the damping are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..per_sample import TOLERANCE, Shape
from .base import ROWS, Cost
from .exact import Operator
from .exact import Rows as RowsForm


@dataclass(frozen=True)
class Truncated(Operator):
    """Keep the eigendirections of F whose eigenvalue is above ``tolerance`` times the damping, as columns.

    Args:
        tolerance: Bound of the relative change of (F + lambda I)^-power, in [0, 1).
        rows: How many positions ``positions="expand"`` keeps, at least one for each sample.

    Raises:
        OptionError: An argument is out of range.

    Cost: the exact Gram matrix, its eigenvalues and n p k multiply-adds a refresh for k columns; memory p k.
    """

    name: ClassVar[str] = "truncated"
    kinds: ClassVar[tuple[str, ...]] = ("product", "lookup", "rows")

    tolerance: float = TOLERANCE
    rows: int = ROWS

    @property
    def truncation(self) -> float | None:
        return self.tolerance

    def cost(self, shape: Shape) -> Cost:
        """At most min(n, p) columns; how many is known only once the damping is."""
        return RowsForm().cost(shape)
