"""Curvature from some of a batch's samples: how many, which ones, and what layers captured of them.

Of n samples k are drawn uniformly without replacement, from the seed and the step alone: all layers get the same.
What they add to ``.grad`` is multiplied by sqrt(n / k), so that the expectation of U U^T is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import floor
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from .per_sample import LayerGradients, Lookup, Product, Rows
from .sketch import generator_for

T = TypeVar("T", bound=LayerGradients)
FEWEST = 2  # samples that curvature is made of, where the batch has as many


def count_drawn(samples: float | None, n: int) -> int:
    """Return how many of n samples make curvature.

    Args:
        samples: The option ``curvature_samples``.
        n: Number of samples of the batch.
    """
    if samples is None:
        return n
    return min(n, samples if isinstance(samples, int) else max(FEWEST, round(samples * n)))


def counts_drawn(samples: float | None, sizes: Sequence[int]) -> list[int]:
    """Return how many samples of each micro-batch make curvature: one of each, the others in proportion to its size.

    Args:
        samples: The option ``curvature_samples``.
        sizes: Number of samples of each micro-batch.
    """
    others = [max(0, n - 1) for n in sizes]
    left = max(0, count_drawn(samples, sum(sizes)) - sum(map(bool, sizes)))
    ends = [round(left * end / max(1, sum(others))) for end in accumulate(others)]
    return [min(1, n) + stop - start for n, (start, stop) in zip(sizes, pairwise([0, *ends]), strict=True)]


@dataclass(frozen=True)
class Subset:
    """The samples that a refresh draws.

    Args:
        samples: The option ``curvature_samples``.
        seed: Of all draws.
        step: Step of the refresh.
        whole: Names of modules of which all samples are recorded, to be compared with ``.grad``.
    """

    samples: float
    seed: int
    step: int
    whole: frozenset[str] = frozenset()

    def most(self, n: int) -> int:
        """Return how many of a micro-batch's n samples may be drawn, whatever other micro-batches there will be."""
        return min(n, self.samples if isinstance(self.samples, int) else floor(self.samples * n + 2.5))

    def first(self, place: int, n: int, count: int) -> Int[Tensor, " count"]:
        """Return samples of a micro-batch, ascending; more of them include those of a smaller count.

        Args:
            place: Of the micro-batch among those of the step.
            n: Number of its samples.
            count: How many are drawn.
        """
        order = torch.randperm(n, generator=generator_for(self.seed, self.step, f"samples of micro-batch {place}"))
        return order[:count].sort().values

    def recorded(self, place: int, n: int) -> Int[Tensor, " k"] | None:
        """Return the samples that hooks keep of a micro-batch; None for all."""
        most = self.most(n)
        return self.first(place, n, most) if most < n else None

    def final(self, io: LayerGradients, place: int, n: int, count: int) -> LayerGradients:
        """Return the samples drawn, of those that hooks keep, with the weights of a draw of ``count`` from n."""
        if count == n:
            return io
        index = self.first(place, n, count)
        if count < io.n < n:
            index = torch.searchsorted(self.first(place, n, io.n), index)
        return (io if io.n == count else chosen(io, index)).multiplied((n / count) ** 0.5)


def chosen(io: T, index: Int[Tensor, " k"]) -> T:
    """Return some samples of what a layer captured."""
    if isinstance(io, Rows):
        return replace(io, parts=tuple(_chosen(part, io.axis, index) for part in io.parts))
    assert isinstance(io, Product | Lookup)
    inputs = "a" if isinstance(io, Product) else "ids"
    parts = {name: _chosen(getattr(io, name), io.axis, index) for name in (inputs, "g")}
    return replace(io, **parts)


def _chosen(x: Tensor, dim: int, index: Int[Tensor, " k"]) -> Tensor:
    """Return some entries of a dimension; of patches that overlap in memory the memory is copied, not the patches."""
    index, stride = index.to(x.device), x.stride(dim)
    others = [(size, step) for k, (size, step) in enumerate(zip(x.shape, x.stride(), strict=True)) if k != dim]
    span = 1 + sum((size - 1) * step for size, step in others)
    if not x.numel() or span > stride or span >= x.numel() // x.shape[dim]:
        return x.index_select(dim, index)
    memory = x.as_strided((x.shape[dim], span), (stride, 1)).index_select(0, index)
    shape, steps = list(x.shape), list(x.stride())
    shape[dim], steps[dim] = len(index), span
    return memory.as_strided(shape, steps)


def cut_shape(io: LayerGradients, samples: float | None) -> LayerGradients:
    """Return what would be drawn of a layer's samples, to plan with."""
    count = count_drawn(samples, io.n)
    return io if count == io.n else chosen(io, torch.arange(count))
