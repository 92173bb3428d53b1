"""What one layer gives: exact per-sample gradients, as they were captured and as curvature holds them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PerSampleGradients

if TYPE_CHECKING:
    from .rows import Rows

T = TypeVar("T", bound="LayerGradients")


class LayerGradients(PerSampleGradients, names=()):
    """U of one layer's parameters, exact.

    Captured ones have columns that add up to ``.grad``, and the tensors and dtypes of the forward and backward pass:
    products with U are made with what ``held`` returns.

    Attributes:
        kind: Its name in estimators, plans and messages.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def positions(self) -> int:
        """Positions of a sample whose gradients are added, s; 1 where they are added already."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the gradients."""

    @abstractmethod
    def held(self: T, scale: float, dtype: torch.dtype) -> T:
        """Return U with columns ``scale`` times as long, in a dtype, kept as it was captured."""

    @abstractmethod
    def written_out(self, scale: float, dtype: torch.dtype) -> Rows:
        """Return U with columns ``scale`` times as long, in a dtype, one row a sample and parameter. Memory: n p."""

    @abstractmethod
    def multiplied(self: T, ratio: float) -> T:
        """Return what would have been captured of a loss ``ratio`` times as large."""

    @abstractmethod
    def expanded(self: T, rows: int, generator: torch.Generator) -> tuple[T, int]:
        """Make each position a sample of its own; keep at most ``rows`` of them, drawn uniformly.

        Kept ones are multiplied by sqrt(total / kept), so that the expectation of U U^T is that over all positions.

        Returns:
            U, and how many columns there were before drawing (the count that scales U).
        """

    @classmethod
    @abstractmethod
    def added(cls: type[T], uses: Sequence[Any]) -> T:
        """Add U of several uses of a layer, all of this class, sample by sample."""

    @classmethod
    @abstractmethod
    def side_by_side(cls: type[T], batches: Sequence[Any]) -> T:
        """Join U of several micro-batches, all of this class, along the samples; fill up with zero gradients."""


def join_uses(uses: Sequence[T]) -> T:
    """Join the uses of one layer within one forward pass: their gradients add up sample by sample."""
    return uses[0] if len(uses) == 1 else type(uses[0]).added(uses)


def join_batches(batches: Sequence[T]) -> T:
    """Join micro-batches along the samples."""
    return batches[0] if len(batches) == 1 else type(batches[0]).side_by_side(batches)


def drawn(total: int, rows: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, float]:
    """Return which of all rows are kept, and what multiplies them."""
    if rows >= total:
        return torch.arange(total, device=like.device), 1.0
    keep = torch.randperm(total, generator=generator)[:rows].sort().values
    return keep.to(like.device), (total / rows) ** 0.5


def padded(x: Tensor, dim: int, size: int) -> Float[Tensor, "..."]:
    """Return a tensor with zeros up to a size."""
    if x.shape[dim] == size:
        return x
    shape = list(x.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim)
