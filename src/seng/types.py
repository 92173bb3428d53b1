"""What crosses the stages: a layer's inputs and output gradients in canonical shapes.

Legend: n samples, s positions (pixels, tokens), c groups, d_in and d_out features of one group, p parameters.
A *block* is the set of parameters that is preconditioned together: a layer's weight and bias. Its gradient is a
``Grads`` tuple, one tensor a trainable parameter, in the order weight, bias. Column i of U is sqrt(n) times the
gradient that sample i contributed to ``.grad`` (mean losses), so that F = U U^T and g = U 1 / sqrt(n).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

Grads = tuple[Tensor, ...]


@dataclass(frozen=True)
class Product:
    """A layer that is a matrix product: sample i adds sum_s g[c, i, s] a[c, i, s]^T to the weight of group c.

    Args:
        a: Inputs, [c, n, s, d_in], or the patches of images, [c, n, *pixels, channels, *kernel] with as many axes of
            pixels as of the kernel: a strided view that overlaps in memory and is not copied until ``inputs``.
        g: Output gradients as captured, [c, n, s, d_out].
        bias: Whether a bias, g summed over positions, is part of the block.
    """

    a: Tensor
    g: Float[Tensor, "c n s d_out"]
    bias: bool = False

    @property
    def n(self) -> int:
        return self.g.shape[1]

    @property
    def positions(self) -> int:
        return self.g.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    @property
    def channels(self) -> int:
        """The axis of ``a`` where the features begin."""
        return self.a.dim() // 2 + 1

    @property
    def d_in(self) -> int:
        return prod(self.a.shape[self.a.dim() // 2 + 1 :])

    def inputs(self, channels: Tensor | None = None) -> Float[Tensor, "c n s d_in"]:
        """Return the inputs with one axis of positions and one of features; of patches, a copy of all or some channels.

        The copy has its features first in memory, as pixels of one row lie side by side.
        """
        if self.a.dim() == 4:
            return self.a
        c, n, s, _ = self.g.shape
        pixels, features = range(2, self.channels), range(self.channels, self.a.dim())
        a = self.a.permute(0, 1, *features, *pixels)
        a = a if channels is None else a.index_select(2, channels)
        return a.reshape(c, n, prod(a.shape[2 : 2 + len(features)]), s).mT

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Canonical shape of each parameter's gradient: rows first."""
        c, _, _, d_out = self.g.shape
        return ((c * d_out, self.d_in), (c * d_out, 1)) if self.bias else ((c * d_out, self.d_in),)

    def chunk(self, start: int, stop: int) -> tuple[Float[Tensor, "c m s d_in"], Float[Tensor, "c m s d_out"]]:
        """Return inputs and output gradients of the samples start..stop."""
        part = replace(self, a=self.a[:, start:stop], g=self.g[:, start:stop])
        return part.inputs(), part.g


@dataclass(frozen=True)
class Lookup:
    """An embedding: sample i adds g[i, s] to row ids[i, s] of the weight; no one-hot array is formed.

    Args:
        ids: Row indices, [n, s].
        g: Output gradients as captured, zero where the index is the padding one, [n, s, d].
        vocabulary: Number of rows of the weight.
    """

    ids: Int[Tensor, "n s"]
    g: Float[Tensor, "n s d"]
    vocabulary: int

    @property
    def n(self) -> int:
        return self.g.shape[0]

    @property
    def positions(self) -> int:
        return self.g.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.vocabulary, self.g.shape[2]),)


@dataclass(frozen=True)
class Rows:
    """A small layer whose per-sample gradients are written out, one matrix a parameter.

    Args:
        parts: Per-sample gradients of each parameter, flattened, [n, p_k] each.
    """

    parts: tuple[Float[Tensor, "n _"], ...]

    @property
    def n(self) -> int:
        return self.parts[0].shape[0]

    @property
    def positions(self) -> int:
        return 1

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((part.shape[1], 1) for part in self.parts)


LayerIO = Product | Lookup | Rows


def parameters_of(io: LayerIO) -> int:
    """Number of parameters p of the block."""
    return sum(rows * columns for rows, columns in io.shapes)


def join_uses(uses: list[LayerIO]) -> LayerIO:
    """Join the uses of one layer within one forward pass: their gradients add up sample by sample."""
    first = uses[0]
    if len(uses) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(tuple(sum(parts[1:], parts[0]) for parts in zip(*(use.parts for use in uses), strict=True)))  # type: ignore[union-attr]
    if isinstance(first, Lookup):
        ids = torch.cat([use.ids for use in uses], 1)  # type: ignore[union-attr]
        return Lookup(ids, torch.cat([use.g for use in uses], 1), first.vocabulary)  # type: ignore[union-attr]
    a = torch.cat([use.inputs().mT for use in uses], 3).mT  # type: ignore[union-attr]
    return Product(a, torch.cat([use.g.mT for use in uses], 3).mT, first.bias)  # type: ignore[union-attr]


def join_batches(batches: list[LayerIO]) -> LayerIO:
    """Join micro-batches along the samples; shorter sequences are padded with zero gradients."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(tuple(torch.cat(parts) for parts in zip(*(b.parts for b in batches), strict=True)))  # type: ignore[union-attr]
    if isinstance(first, Lookup):
        s = max(b.g.shape[1] for b in batches)  # type: ignore[union-attr]
        ids = torch.cat([_pad(b.ids, 1, s) for b in batches])  # type: ignore[union-attr]
        return Lookup(ids, torch.cat([_pad(b.g, 1, s) for b in batches]), first.vocabulary)  # type: ignore[union-attr]
    s = max(b.g.shape[2] for b in batches)  # type: ignore[union-attr]
    a = torch.cat([_pad(b.inputs().mT, 3, s) for b in batches], 1).mT  # type: ignore[union-attr]
    return Product(a, torch.cat([_pad(b.g.mT, 3, s) for b in batches], 1).mT, first.bias)  # type: ignore[union-attr]


def expand_positions(io: LayerIO, rows: int, generator: torch.Generator) -> tuple[LayerIO, int]:
    """Make each position a sample of its own; keep at most ``rows`` of them, drawn uniformly.

    Kept rows are scaled by sqrt(total / kept), so that the expectation of U U^T is that over all positions.
    Small layers that come as Rows keep one row a sample.

    Returns:
        The expanded layer, and how many rows there were before drawing (the count that scales U).
    """
    if isinstance(io, Rows):
        return io, io.n
    if isinstance(io, Lookup):
        ids, g = io.ids.reshape(-1, 1), io.g.reshape(-1, 1, io.g.shape[2])
        keep, scale = _draw(len(g), rows, generator, g)
        return Lookup(ids[keep], g[keep] * scale, io.vocabulary), len(g)
    c, n, s, d_out = io.g.shape
    g = io.g.reshape(c, n * s, 1, d_out)
    keep, scale = _draw(n * s, rows, generator, g)
    a = io.inputs().reshape(c, n * s, 1, io.d_in)
    return Product(a[:, keep], g[:, keep] * scale, io.bias), n * s


def _draw(total: int, rows: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, float]:
    if rows >= total:
        return torch.arange(total, device=like.device), 1.0
    keep = torch.randperm(total, generator=generator)[:rows].sort().values
    return keep.to(like.device), (total / rows) ** 0.5


def _pad(x: Tensor, dim: int, size: int) -> Tensor:
    if x.shape[dim] == size:
        return x
    shape = list(x.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim)
