"""What one layer gives: exact per-sample gradients, as they were captured and as curvature holds them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

from .base import PerSampleGradients
from .shape import Shape

if TYPE_CHECKING:
    from .rows import Rows

T = TypeVar("T", bound="LayerGradients")


class LayerGradients(PerSampleGradients, names=()):
    """U of one layer's parameters, exact.

    Captured ones have columns that add up to ``.grad``, and the tensors and dtypes of the forward and backward pass:
    products with U are made with what ``held`` returns.

    Attributes:
        kind: Its name in estimators, plans and messages.
        axis: The axis of the samples in ``tensors``; that of the positions, where there are any, comes next.
    """

    kind: ClassVar[str]
    axis: ClassVar[int] = 0

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the gradients."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The shape of what was captured."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that ``shape.specs`` announces, the gradients last; patches are copied out."""

    @classmethod
    @abstractmethod
    def of_tensors(cls: type[T], shape: Shape, tensors: Sequence[Tensor]) -> T:
        """Undo ``shape`` and ``tensors``."""

    @abstractmethod
    def held(self: T, scale: float, dtype: torch.dtype) -> T:
        """Return U with columns ``scale`` times as long, in a dtype, kept as it was captured."""

    @abstractmethod
    def written_out(self, scale: float, dtype: torch.dtype) -> Rows:
        """Return U with columns ``scale`` times as long, in a dtype, one row a sample and parameter. Memory: n p."""

    def multiplied(self: T, ratio: float) -> T:
        """Return what would have been captured of a loss ``ratio`` times as large."""
        return replace(self, g=self.g * ratio)  # type: ignore[type-var]

    def expanded(self: T, rows: int, generator: torch.Generator) -> tuple[T, int]:
        """Make each position a sample of its own; keep at most ``rows`` of them, drawn uniformly.

        Kept ones are multiplied by sqrt(total / kept), so that the expectation of U U^T is that over all positions.

        Returns:
            U, and how many columns there were before drawing (the count that scales U).
        """
        inputs, g = (x.flatten(self.axis, self.axis + 1).unsqueeze(self.axis + 1) for x in self.tensors)
        total = g.shape[self.axis]
        if rows < total:
            keep = torch.randperm(total, generator=generator)[:rows].sort().values.to(g.device)
            inputs, g = (x.index_select(self.axis, keep) for x in (inputs, g))
        return self.of_tensors(self.shape, (inputs, g * (total / g.shape[self.axis]) ** 0.5)), total

    def added(self: T, uses: Sequence[T]) -> T:
        """Return the sum, sample by sample, of U of several uses of a layer, which this one is among."""
        tensors = zip(*(use.tensors for use in uses), strict=True)
        return self.of_tensors(self.shape, [self.joined(parts, self.axis + 1) for parts in tensors])

    def side_by_side(self: T, batches: Sequence[T]) -> T:
        """Return U of several micro-batches, which this one is among; shorter sequences get zero gradients."""
        s = max(batch.shape.s for batch in batches)
        tensors = [[_padded(x, self.axis + 1, s - batch.shape.s) for x in batch.tensors] for batch in batches]
        return self.of_tensors(self.shape, [self.joined(parts, self.axis) for parts in zip(*tensors, strict=True)])

    @staticmethod
    def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
        """Join tensors along the samples, or along the positions."""
        return torch.cat(parts, axis)  # type: ignore[arg-type]


def join_uses(uses: Sequence[T]) -> T:
    """Join the uses of one layer within one forward pass: their gradients add up sample by sample."""
    return uses[0] if len(uses) == 1 else uses[0].added(uses)


def join_batches(batches: Sequence[T]) -> T:
    """Join micro-batches along the samples."""
    return batches[0] if len(batches) == 1 else batches[0].side_by_side(batches)


def _padded(x: Tensor, axis: int, missing: int) -> Tensor:
    return torch.cat([x, x.new_zeros(*x.shape[:axis], missing, *x.shape[axis + 1 :])], axis) if missing else x
