"""Per-sample gradients kept as the two factors of their product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg.gram import gram_of_products
from ..types import Grads, Product
from .base import Factor

CHECK_FROM = 2**24  # multiply-adds of ``mv`` above which checking for the mean is cheaper


@dataclass(frozen=True)
class Kronecker(Factor):
    """Column i of U is scale * sum_s g[c, i, s] a[c, i, s]^T, and scale * sum_s g[c, i, s] for the bias.

    Args:
        a: Inputs, [c, n, s, d_in].
        g: Output gradients, [c, n, s, d_out].
        bias: Whether the block has a bias: a column of ones in ``a`` that is never stored.
        scale: Factor on every column, sqrt(n) for mean losses.
    """

    a: Float[Tensor, "c n s d_in"]
    g: Float[Tensor, "c n s d_out"]
    bias: bool
    scale: float

    @property
    def n(self) -> int:
        return self.g.shape[1]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        c, _, _, d_out = self.g.shape
        return ((c * d_out, self.a.shape[3]), (c * d_out, 1)) if self.bias else ((c * d_out, self.a.shape[3]),)

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
        a, g = a.view(groups, n * s, d_in), g.view(groups, n * s, d_out)
        if groups == 1:
            v[0].view(d_out, d_in).addmm_(g[0].T, a[0], beta=beta)
        else:
            v[0].view(groups, d_out, d_in).baddbmm_(g.mT, a, beta=beta)
        if self.bias:
            per_position = weights if s == 1 else weights.repeat_interleave(s)
            for out, own in zip(v[1].view(groups, d_out), self.g.view(groups, n * s, d_out), strict=True):
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


def kronecker(io: Product, scale: float, dtype: torch.dtype) -> Kronecker:
    """Keep inputs and output gradients as they are. Memory: n s (d_in + d_out) c."""
    a, g = io.chunk(0, io.n)
    a, g = a.to(dtype), g.to(dtype)
    return Kronecker(a.contiguous(), g.contiguous(), io.bias, scale)
