"""Low-rank per-sample gradients with both sides sketched: the paper's large layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..per_sample import LayerGradients, PerSampleGradients, Product, beside_bias, low_rank, sketch_sides
from ..sizes import Size
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

    def smaller(self, size: Size) -> Sequence[Form]:
        ranks = dict.fromkeys((self.rank, max(1, self.rank // 4), 1))
        return [replace(self, rank=rank) for rank in ranks] if self.forms(size) else ()

    def cost(self, size: Size) -> Cost:
        r, q = min(self.rank, size.s), self.rows
        sampled, both = min(q, size.d_in) + min(q, size.d_out), size.d_in + size.d_out
        reduction = 0.0 if r == size.s else 4.0 * size.n * size.s * both * (r + 4)
        drawn = sum(sketch_bytes(self.sketch, d, q) for d in (size.d_in, size.d_out)) / size.itemsize
        bias = size.n * (size.p - size.c * size.d_in * size.d_out)
        return Cost(
            size.c * size.n * r * (both + sampled) + bias + drawn,
            size.c * (reduction + 2.0 * size.n**2 * r * r * sampled),
            2.0 * size.c * size.n * r * (size.d_in * size.d_out + sampled * min(q, size.d_in)),
            size.n,
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
