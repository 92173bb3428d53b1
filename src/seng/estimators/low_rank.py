"""Low-rank per-sample gradients with both sides sketched: the paper's large layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..per_sample import LayerGradients, PerSampleGradients, Product, Shape, beside_bias, low_rank, sketch_sides
from ..sketch import sketch_bytes
from .base import ROWS, Cost, Form


@dataclass(frozen=True)
class LowRank(Form):
    """Replace each sample's weight gradient by one of rank r, and sketch its rows and columns to q each.

    Layers that are no matrix product are kept exactly.

    Args:
        rank: r, >= 1.
        rows: q, >= 1.
        sketch: Name in ``seng.sketch.SKETCHES``: "uniform", "row_norm", "gaussian" or "sparse_sign".
        tolerance: As for ``seng.Exact``.

    Raises:
        OptionError: An argument is out of range.

    Cost: n s (d_in + d_out) r + n^2 r^2 q multiply-adds a refresh; memory n r (d_in + d_out).
    Source: PAPER section 3.
    """

    name: ClassVar[str] = "implicit"
    kinds: ClassVar[tuple[str, ...]] = ("product",)
    draws: ClassVar[bool] = True

    rank: int = 16
    rows: int = ROWS
    sketch: str = "uniform"
    tolerance: float = 0.0

    @property
    def wire_rank(self) -> int | None:
        return self.rank

    def smaller(self, shape: Shape) -> Sequence[Form]:
        ranks = dict.fromkeys((self.rank, max(1, self.rank // 4), 1))
        return [replace(self, rank=rank) for rank in ranks] if self.forms(shape) else ()

    def cost(self, shape: Shape) -> Cost:
        r, q = min(self.rank, shape.s), self.rows
        sampled, both = min(q, shape.d_in) + min(q, shape.d_out), shape.d_in + shape.d_out
        reduction = 0.0 if r == shape.s else 4.0 * shape.n * shape.s * both * (r + 4)
        drawn = sum(sketch_bytes(self.sketch, d, q) for d in (shape.d_in, shape.d_out)) / shape.itemsize
        bias = shape.n * (shape.p - shape.c * shape.d_in * shape.d_out)
        return Cost(
            shape.c * shape.n * r * (both + sampled) + bias + drawn,
            shape.c * (reduction + 2.0 * shape.n**2 * r * r * sampled),
            2.0 * shape.c * shape.n * r * (shape.d_in * shape.d_out + sampled * min(q, shape.d_in)),
            shape.n,
        )

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        assert isinstance(io, Product)  # the only kind of this form
        return beside_bias(io, self.weight(io, scale, dtype, generator), scale, dtype)

    def weight(self, io: Product, scale: float, dtype: torch.dtype, generator: torch.Generator) -> PerSampleGradients:
        """Return U of the weight alone."""
        full = low_rank(io, self.rank, scale, dtype, generator)
        return sketch_sides(full, self.sketch, self.rows, generator)
