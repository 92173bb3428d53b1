"""Per-sample gradients written out, with a sketched least squares problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..per_sample import LayerGradients, PerSampleGradients, Shape, sketch_rows
from ..sketch import sketch_bytes
from .base import MEMORY_BOUND, ROWS, Cost, Form


@dataclass(frozen=True)
class Sketched(Form):
    """Sketch the flattened per-sample gradients to q rows: K = (Omega U)^T (Omega U), while U c stays exact.

    Embeddings are kept exactly.

    Args:
        sketch: Name in ``seng.sketch.SKETCHES``: "uniform", "row_norm", "gaussian" or "sparse_sign".
        rows: q, >= 1.
        tolerance: As for ``seng.Exact``.

    Raises:
        OptionError: An argument is out of range.

    Cost: n s d_in d_out + n^2 q multiply-adds a refresh; memory n (p + q).
    Source: PAPER section 2.
    """

    name: ClassVar[str] = "sketched-rows"
    kinds: ClassVar[tuple[str, ...]] = ("product", "rows")
    draws: ClassVar[bool] = True

    sketch: str = "uniform"
    rows: int = ROWS
    tolerance: float = 0.0

    def cost(self, shape: Shape) -> Cost:
        q = min(self.rows, shape.p)
        form = shape.c * shape.n * shape.s * shape.d_in * shape.d_out
        return Cost(
            shape.n * (shape.p + q) + sketch_bytes(self.sketch, shape.p, q) / shape.itemsize,
            2.0 * form + 2.0 * shape.n * shape.n * q,
            MEMORY_BOUND * 2.0 * shape.n * (shape.p + q),
            shape.n,
        )

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        return sketch_rows(io.written_out(scale, dtype), self.sketch, self.rows, generator)
