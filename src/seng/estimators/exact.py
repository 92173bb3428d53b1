"""Exact curvature, in the cheaper of two forms: what the layer captured, or per-sample gradients written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..per_sample import LayerGradients, PerSampleGradients, Shape, implicit_gram_is_cheaper
from .base import MEMORY_BOUND, ROWS, Choice, Cost, Estimator, Form


@dataclass(frozen=True)
class Operator(Form):
    """Keep inputs and output gradients as they were captured. Nothing is formed for a sample."""

    name: ClassVar[str] = "operator"
    kinds: ClassVar[tuple[str, ...]] = ("product", "lookup")

    def cost(self, shape: Shape) -> Cost:
        """Modules that share a parameter have one Gram matrix between them; small layers give rows as they are."""
        n, s, both, whole = shape.n, shape.s, shape.d_in + shape.d_out, shape.d_in * shape.d_out
        if shape.members:
            each = [self.cost(member) for member in shape.members]
            return Cost(sum(c.elements for c in each), sum(c.gram for c in each), sum(c.apply for c in each), n)
        if shape.kind == "rows":
            return Cost(n * shape.p, 2.0 * n * n * shape.p, 4.0 * n * shape.p, n)
        if shape.kind == "lookup":
            used = min(n * s, shape.vocabulary)  # at most so many rows of the weight
            return Cost(
                n * s * (shape.d_out + 2), 2.0 * n * n * min(s * s, used) * shape.d_out, 4.0 * n * s * shape.d_out, n
            )
        cheap = implicit_gram_is_cheaper(n, s, shape.d_in, shape.d_out)
        gram = n * n * s * s * both if cheap else n * s * whole + n * n * whole
        return Cost(shape.c * n * s * both, 2.0 * shape.c * gram, 4.0 * shape.c * n * s * whole, n)

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        return io.held(scale, dtype)


@dataclass(frozen=True)
class Rows(Form):
    """Write the per-sample gradients out, on as few columns as they need."""

    name: ClassVar[str] = "rows"
    kinds: ClassVar[tuple[str, ...]] = ("product", "rows")

    def columns(self, n: int, p: int) -> int:
        return min(n, p)

    def cost(self, shape: Shape) -> Cost:
        """At most min(n, p) columns, whose products are bound by memory, not by arithmetic."""
        k = min(shape.n, shape.p)
        form = shape.c * shape.n * shape.s * shape.d_in * shape.d_out
        return Cost(k * shape.p, 2.0 * form + 2.0 * shape.n * k * shape.p, MEMORY_BOUND * 4.0 * k * shape.p, k)

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        return io.written_out(scale, dtype).thin()


FORMS = (Operator(), Rows())


@dataclass(frozen=True)
class Exact(Estimator):
    """Use all samples and all parameters: F = U U^T as it is.

    Args:
        tolerance: Relative error of a direction's coefficients that powers below 1 may make where curvature serves one
            step alone (curvature of the current batch at every step), in [0, 1): Lanczos' method stops there. 0:
            rounding errors only.
        rows: How many positions ``positions="expand"`` keeps, at least one for each sample.

    Raises:
        OptionError: An argument is out of range.

    Cost: the less work of n^2 s^2 (d_in + d_out) and n s d_in d_out + n^2 d_in d_out multiply-adds a refresh.
    """

    name: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True

    tolerance: float = 0.0
    rows: int = ROWS

    def forms(self, shape: Shape) -> Sequence[Form]:
        return tuple(form for form in FORMS if shape.kind in form.kinds)

    def choose(self, shape: Shape, price: Callable[[Form], Choice], interval: int) -> Choice:
        best = min(map(price, self.forms(shape)), key=lambda choice: choice.work(interval))
        return replace(best, reason="least work of the exact forms")
