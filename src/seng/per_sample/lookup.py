"""Embeddings: per-sample gradients as indices and output gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..linalg.gram import SCRATCH
from .base import Grads
from .layer import LayerGradients
from .rows import Rows
from .shape import Shape


@dataclass(frozen=True)
class Lookup(LayerGradients, names=("Lookup", "LookupFactor")):
    """Column i of U adds scale * g[i, s] to row ids[i, s] of the weight; no one-hot array is formed.

    Args:
        ids: Row indices, [n, s].
        g: Output gradients, zero where the index is the padding one, [n, s, d].
        vocabulary: Number of rows of the weight.
        scale: Factor on every column: 1 as captured.
    """

    kind: ClassVar[str] = "lookup"

    ids: Int[Tensor, "n s"]
    g: Float[Tensor, "n s d"]
    vocabulary: int
    scale: float = 1.0

    @property
    def n(self) -> int:
        return self.g.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ((self.vocabulary, self.g.shape[2]),)

    @property
    def shape(self) -> Shape:
        n, s, d = self.g.shape
        return Shape(self.kind, n, self.vocabulary * d, s=s, d_out=d, inputs=self.ids.dtype, grads=self.g.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.g

    @classmethod
    def of_tensors(cls, shape: Shape, tensors: Sequence[Tensor]) -> Lookup:
        return cls(tensors[0], tensors[1], shape.vocabulary)

    def held(self, scale: float, dtype: torch.dtype) -> Lookup:
        """Memory: n s d."""
        return replace(self, g=self.g.to(dtype), scale=scale)

    def written_out(self, scale: float, dtype: torch.dtype) -> Rows:
        rows = self.held(scale, dtype).tile(0, 0, self.vocabulary)
        return Rows((rows.flatten(1),), self.shapes)

    def tile(self, slot: int, start: int, stop: int) -> Float[Tensor, "n rows columns"]:
        n, s, d = self.g.shape
        inside = (self.ids >= start) & (self.ids < stop)
        row = torch.arange(n, device=self.g.device)[:, None].expand(n, s)[inside]
        out = self.g.new_zeros(n, stop - start, d)
        return out.index_put_((row, self.ids[inside] - start), self.g[inside] * self.scale, accumulate=True)

    def gram(self) -> Float[Tensor, "n n"]:
        """Only rows that some sample uses matter. Cost: n^2 d min(s^2, rows in use)."""
        used, ids = self.ids.unique(return_inverse=True)
        n, s, d = self.g.shape
        if len(used) < s * s:
            return Lookup(ids, self.g, len(used), self.scale).gram_by_tiles()
        k = self.g.new_empty(n, n)
        flat, flat_ids = self.g.reshape(n * s, d), ids.reshape(-1)
        step = max(1, SCRATCH // (n * s * s))
        for i in range(0, n, step):
            part = slice(i * s, min(n, i + step) * s)
            same = flat_ids[part, None] == flat_ids
            k[i : i + step] = (flat[part] @ flat.T).mul_(same).view(-1, s, n, s).sum((1, 3))
        return k.mul_(self.scale**2)

    def mv(self, v: Grads) -> Float[Tensor, " n"]:
        """Cost: n s d multiply-adds."""
        return (v[0].view(self.shapes[0])[self.ids] * self.g).sum((1, 2)) * self.scale

    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        """Cost: n s d multiply-adds, and one pass over the weight where beta is not 1."""
        weight = v[0].view(self.shapes[0])
        if beta != 1.0:
            weight.mul_(beta)
        weighted = self.g * (c * self.scale)[:, None, None]
        weight.index_add_(0, self.ids.reshape(-1), weighted.flatten(0, 1))
