"""An estimator of a third party, with a way of its own to keep U: one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seng.estimators import Cost, Form
from seng.per_sample import Grads, LayerGradients, PerSampleGradients, Shape


@dataclass(frozen=True)
class Matrix(PerSampleGradients):
    """U [p, n] as one matrix."""

    u: Tensor
    shapes: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        return self.u.shape[1]

    def tile(self, slot: int, start: int, stop: int) -> Tensor:
        rows, columns = self.shapes[slot]
        first = sum(r * c for r, c in self.shapes[:slot])
        return self.u[first : first + rows * columns].T.reshape(self.n, rows, columns)[:, start:stop]

    def mv(self, v: Grads) -> Tensor:
        return self.u.T @ torch.cat([x.reshape(-1) for x in v])

    def add_rmv_(self, v: Grads, c: Tensor, beta: float = 1.0) -> None:
        for x, own in zip(v, (self.u @ c).split([r * k for r, k in self.shapes]), strict=True):
            x.mul_(beta).add_(own.view_as(x))


@dataclass(frozen=True)
class Columns(Form):
    """Write the per-sample gradients out, columns first."""

    name: ClassVar[str] = "columns"
    kinds: ClassVar[tuple[str, ...]] = ("product", "rows")

    def cost(self, shape: Shape) -> Cost:
        n, p = shape.n, shape.p
        form = shape.c * n * shape.s * shape.d_in * shape.d_out
        return Cost(n * p, 2.0 * form + 2.0 * n * n * p, 4.0 * n * p, n)

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        rows = io.written_out(scale, dtype)
        return Matrix(torch.cat(rows.parts, 1).T.contiguous(), rows.shapes)
