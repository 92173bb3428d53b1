"""The estimator as the paper's authors released it, for comparisons only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..per_sample import LayerGradients, PerSampleGradients, Product, Shape, as_released
from ..per_sample import Sketched as SketchedGradients
from .base import ROWS, Choice, Estimator, Form
from .low_rank import LowRank
from .sketched import Sketched

PAPER_LIMIT = 700_000  # parameters above which the paper treats a layer implicitly


@dataclass(frozen=True)
class ReleasedRows(Sketched):
    """Uniformly sampled rows with the released scaling."""

    name: ClassVar[str] = "paper-code"
    frozen_damping: ClassVar[bool] = True

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        factor = super().build(io, scale, dtype, generator)
        assert isinstance(factor, SketchedGradients)
        return as_released(factor)


@dataclass(frozen=True)
class ReleasedLowRank(LowRank):
    """Low rank and uniformly sampled sides with the released scaling."""

    name: ClassVar[str] = "paper-code"
    frozen_damping: ClassVar[bool] = True

    def weight(self, io: Product, scale: float, dtype: torch.dtype, generator: torch.Generator) -> PerSampleGradients:
        factor = super().weight(io, scale, dtype, generator)
        assert isinstance(factor, SketchedGradients)
        return as_released(factor)


@dataclass(frozen=True)
class PaperCode(Estimator):
    """Compute what the authors' program does: biased sketches of uniform rows, for power 1 alone.

    Coefficients keep the damping of the refresh. Embeddings are kept exactly.

    Args:
        rank: Rank of each sample's gradient in layers above the limit, >= 1.
        rows: Rows of a sketch, >= 1.
        explicit_limit: Parameters of the largest layer whose per-sample gradients are written out, >= 1; None: all are.

    Raises:
        OptionError: An argument is out of range.

    Cost: that of ``seng.LowRank`` above the limit, else of ``seng.Sketched``.
    Source: PAPER section 8.
    """

    name: ClassVar[str] = "paper-code"
    natural_only: ClassVar[bool] = True

    rank: int = 16
    rows: int = ROWS
    explicit_limit: int | None = PAPER_LIMIT

    def forms(self, shape: Shape) -> Sequence[Form]:
        limit = self.explicit_limit
        if shape.kind == "product" and limit is not None and shape.p > limit:
            return (ReleasedLowRank(self.rank, self.rows),)
        return ReleasedRows(rows=self.rows).forms(shape)

    def choose(self, shape: Shape, price: Callable[[Form], Choice], interval: int) -> Choice:
        (form,) = self.forms(shape)
        return replace(price(form), reason="asked for")

    def passthrough_scale(self, damping: float, power: float) -> float:
        return 1 / (1 + damping)
