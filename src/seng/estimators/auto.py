"""The estimator "auto": exact where that is affordable, low rank elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..per_sample import Shape
from .base import ROWS, Choice, Estimator, Form
from .exact import Exact
from .low_rank import LowRank

EXACT_LIMIT = 2**28  # bytes of one block's curvature beyond which it is sketched
REFRESH_SHARE = 40.0  # flops of a refresh, in backward passes of the block, beyond which it is sketched


@dataclass(frozen=True)
class Auto(Estimator):
    """Choose for each layer: ``seng.Exact`` where that is affordable, ``seng.LowRank`` where it is less work.

    Exact is not affordable where it would hold more than 256 MiB, or refresh in more than 40 backward passes of the
    layer.

    Args:
        rank: As for ``seng.LowRank``.
        rows: As for ``seng.LowRank``.
        sketch: As for ``seng.LowRank``.
        explicit_limit: Parameters of the largest layer that is kept exactly whatever the cost, >= 1; larger ones are
            sketched where that holds less or is less work. None lets costs alone decide.
        tolerance: As for ``seng.Exact``.

    Raises:
        OptionError: An argument is out of range.
    """

    name: ClassVar[str] = "auto"

    rank: int = 16
    rows: int = ROWS
    sketch: str = "uniform"
    explicit_limit: int | None = None
    tolerance: float = 0.0

    @property
    def low_rank(self) -> LowRank:
        """The sketched candidate."""
        return LowRank(self.rank, self.rows, self.sketch, self.tolerance)

    def forms(self, shape: Shape) -> Sequence[Form]:
        return (*Exact().forms(shape), *self.low_rank.forms(shape))

    def smaller(self, shape: Shape) -> Sequence[Form]:
        return (*Exact().forms(shape), *self.low_rank.smaller(shape))

    def choose(self, shape: Shape, price: Callable[[Form], Choice], interval: int) -> Choice:
        best = Exact().choose(shape, price, interval)
        excess = self._excess(shape, best)
        if excess is None:
            return replace(best, reason="exact is affordable")
        for sketched in map(price, self.low_rank.forms(shape)):
            smaller = self.explicit_limit is not None and sketched.nbytes < best.nbytes
            if smaller or sketched.work(interval) < best.work(interval):
                return replace(sketched, reason=excess)
        return replace(best, reason=f"{excess}, but a sketch is more work")

    def _excess(self, shape: Shape, exact: Choice) -> str | None:
        """Say why a layer is too large for its cheapest exact form, or return None where it is not."""
        if (limit := self.explicit_limit) is not None:
            return f"above {limit:,} parameters" if shape.p > limit and shape.kind == "product" else None
        if exact.nbytes > EXACT_LIMIT:
            return f"exact would hold {exact.nbytes / 2**20:,.0f} MiB"
        passes = exact.refresh_flops / shape.backward_flops
        return f"exact would refresh in {passes:,.0f} backward passes" if passes > REFRESH_SHARE else None
