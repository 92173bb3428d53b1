"""Layers that are matrix products: per-sample gradients as inputs and output gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg.gram import SCRATCH, gram_of_products
from .base import Grads
from .layer import LayerGradients
from .rows import Rows
from .shape import Shape

CHECK_FROM = 2**24  # multiply-adds of ``mv`` above which checking for the mean is cheaper


@dataclass(frozen=True)
class Product(LayerGradients, names=("Product", "Kronecker")):
    """Column i of U is scale * sum_s g[c, i, s] a[c, i, s]^T, and scale * sum_s g[c, i, s] for the bias.

    Args:
        a: Inputs, [c, n, s, d_in], or the patches of images, [c, n, *pixels, channels, *kernel] with as many axes of
            pixels as of the kernel: a strided view that overlaps in memory and is not copied until ``inputs``.
        g: Output gradients, [c, n, s, d_out].
        bias: Whether the block has a bias: a column of ones in ``a`` that is never stored.
        scale: Factor on every column: 1 as captured, sqrt(n) in curvature of mean losses.
    """

    kind: ClassVar[str] = "product"
    axis: ClassVar[int] = 1

    a: Tensor
    g: Float[Tensor, "c n s d_out"]
    bias: bool = False
    scale: float = 1.0

    @property
    def n(self) -> int:
        return self.g.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    @property
    def d_in(self) -> int:
        """Features of one position in one group."""
        return prod(self.a.shape[self.a.dim() // 2 + 1 :])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        c, _, _, d_out = self.g.shape
        return ((c * d_out, self.d_in), (c * d_out, 1)) if self.bias else ((c * d_out, self.d_in),)

    @property
    def shape(self) -> Shape:
        c, n, s, d_out = self.g.shape
        p = c * d_out * (self.d_in + self.bias)
        return Shape(self.kind, n, p, c, s, self.d_in, d_out, self.a.dtype, self.g.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.inputs(), self.g

    @classmethod
    def of_tensors(cls, shape: Shape, tensors: Sequence[Tensor]) -> Product:
        return cls(tensors[0], tensors[1], shape.bias)

    @property
    def channels(self) -> int | None:
        """Input channels of one group, where ``a`` holds patches."""
        return self.a.shape[self.a.dim() // 2 + 1] if self.a.dim() > 4 else None

    def inputs(self, channels: Tensor | None = None) -> Float[Tensor, "c n s d_in"]:
        """Return the inputs with one axis of positions and one of features; of patches, a copy of all or some channels.

        The copy has its features first in memory, as pixels of one row lie side by side.
        """
        if self.a.dim() == 4:
            return self.a
        c, n, s, _ = self.g.shape
        split = self.a.dim() // 2 + 1
        pixels, features = range(2, split), range(split, self.a.dim())
        a = self.a.permute(0, 1, *features, *pixels)
        a = a if channels is None else a.index_select(2, channels)
        return a.reshape(c, n, prod(a.shape[2 : 2 + len(features)]), s).mT

    def chunk(self, start: int, stop: int) -> tuple[Float[Tensor, "c m s d_in"], Float[Tensor, "c m s d_out"]]:
        """Return inputs and output gradients of the samples start..stop."""
        part = replace(self, a=self.a[:, start:stop], g=self.g[:, start:stop])
        return part.inputs(), part.g

    def bias_rows(self, scale: float, dtype: torch.dtype) -> Float[Tensor, "n _"]:
        """Return ``scale`` times the gradients of the bias, one row a sample."""
        return self.g.sum(2, dtype=dtype).transpose(0, 1).reshape(self.n, -1).mul_(scale)

    @staticmethod
    def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat([part.mT for part in parts], 3 if axis == 2 else axis).mT  # features first, as of patches

    def held(self, scale: float, dtype: torch.dtype) -> Product:
        """Memory: n s (d_in + d_out) c."""
        a, g = self.inputs().to(dtype), self.g.to(dtype)
        return Product(a.contiguous(), g.contiguous(), self.bias, scale)

    def written_out(self, scale: float, dtype: torch.dtype) -> Rows:
        """Write the per-sample gradients out, in chunks of samples. Cost: n s d_in d_out c multiply-adds."""
        c, n, s, d_out = self.g.shape
        weight = torch.empty(n, c, d_out, self.d_in, dtype=dtype, device=self.g.device)
        step = max(1, SCRATCH // max(1, c * s * self.d_in))
        for i in range(0, n, step):
            a, g = self.chunk(i, min(n, i + step))
            left = g.to(dtype).mT * scale
            if c == 1:
                torch.bmm(left[0], a[0].to(dtype), out=weight[i : i + step, 0])
            else:
                weight[i : i + step] = (left @ a.to(dtype)).transpose(0, 1)
        parts = (weight.view(n, -1), self.bias_rows(scale, dtype)) if self.bias else (weight.view(n, -1),)
        return Rows(parts, self.shapes)

    def tile(self, slot: int, start: int, stop: int) -> Float[Tensor, "n rows columns"]:
        """Cost: n s d_in multiply-adds a row."""
        d_out = self.g.shape[3]
        pieces = []
        for c in range(start // d_out, -(-stop // d_out)):
            low, high = max(start - c * d_out, 0), min(stop - c * d_out, d_out)
            g = self.g[c, :, :, low:high]
            pieces.append(g.sum(1)[..., None] if slot else g.mT @ self.a[c])
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)) * self.scale

    def gram(self) -> Float[Tensor, "n n"]:
        """Cost: the cheaper of n^2 s^2 (d_in + d_out) and n s d_in d_out + n^2 d_in d_out, a group."""
        if not implicit_gram_is_cheaper(self.n, self.a.shape[2], self.a.shape[3], self.g.shape[3]):
            return self.gram_by_tiles()
        total = gram_of_products(self.a[0], self.g[0], self.bias, self.scale)
        for a, g in zip(self.a[1:], self.g[1:], strict=True):
            total.add_(gram_of_products(a, g, self.bias, self.scale))
        return total

    def mv(self, v: Grads) -> Float[Tensor, " n"]:
        """Return rowsum((G V) o A). Cost: c n s d_in d_out multiply-adds."""
        c, n, s, d_in = self.a.shape
        d_out = self.g.shape[3]
        weight = v[0].view(c, 1, d_out, d_in)
        inner = self.g.reshape(c, 1, n * s, d_out) @ weight if d_in <= d_out else None
        if inner is not None:
            y = torch.linalg.vecdot(inner.view(c, n, s * d_in), self.a.reshape(c, n, s * d_in)).sum(0)
        else:
            inner = self.a.reshape(c, 1, n * s, d_in) @ weight.mT
            y = torch.linalg.vecdot(inner.view(c, n, s * d_out), self.g.reshape(c, n, s * d_out)).sum(0)
        if self.bias:
            y = y + (self.g @ v[1].view(c, 1, d_out, 1)).sum((0, 2, 3))
        return y * self.scale

    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        """One weighted weight-gradient product, the narrower side weighted. Cost: c n s d_in d_out multiply-adds."""
        groups, n, s, d_in = self.a.shape
        d_out = self.g.shape[3]
        weights = c * self.scale
        a, g, per_sample = self.a, self.g, weights[:, None, None]
        a, g = (a * per_sample, g) if d_in < d_out else (a, g * per_sample)
        a, g = a.reshape(groups, n * s, d_in), g.reshape(groups, n * s, d_out)
        if groups == 1:
            v[0].view(d_out, d_in).addmm_(g[0].T, a[0], beta=beta)
        else:
            v[0].view(groups, d_out, d_in).baddbmm_(g.mT, a, beta=beta)
        if self.bias:
            per_position = weights if s == 1 else weights.repeat_interleave(s)
            for out, own in zip(v[1].view(groups, d_out), self.g.reshape(groups, n * s, d_out), strict=True):
                out.addmv_(own.T, per_position, beta=beta)

    def mean_multiple(self, v: Grads, generator: torch.Generator) -> Tensor | None:
        """Freivalds' check of v against the mean of the columns, where ``mv`` costs more than the check.

        Cost: p + c n s (d_in + d_out).
        """
        c, n, s, d_in = self.a.shape
        d_out = self.g.shape[3]
        if c * n * s * d_in * d_out < CHECK_FROM:
            return None
        probes = torch.randn(c, d_out, generator=generator).to(self.a)
        means, seens = [], []
        for k, (probe, weight) in enumerate(zip(probes, v[0].view(c, d_out, d_in), strict=True)):
            projected = self.g[k].reshape(n * s, d_out) @ probe
            means.append(self.a[k].reshape(n * s, d_in).T @ projected)
            seens.append(weight.T @ probe)
            if self.bias:
                means.append(projected.sum()[None])
                seens.append(torch.dot(v[1].view(c, d_out)[k], probe)[None])
        mean, seen = torch.cat(means), torch.cat(seens)
        alpha = torch.dot(seen, mean) / torch.dot(mean, mean)
        rounding = 32 * torch.finfo(seen.dtype).eps * (n * s) ** 0.5
        miss = seen - alpha * mean
        close = torch.dot(miss, miss) <= rounding**2 * torch.dot(seen, seen)
        return alpha * (n**0.5 / self.scale) if bool(close & alpha.isfinite()) else None


def implicit_gram_is_cheaper(n: int, s: int, d_in: int, d_out: int) -> bool:
    """Compare the multiply-adds of the two ways to the Gram matrix of a product layer."""
    return n * n * s * s * (d_in + d_out) <= n * s * d_in * d_out + n * n * d_in * d_out
