"""U as an operator: the one interface through which curvature is used.

Legend: n samples, s positions (pixels, tokens), c groups, d_in and d_out features of one group, p parameters.
A *block* is the set of parameters that is preconditioned together: a layer's weight and bias. Its gradient is a
``Grads`` tuple, one tensor a trainable parameter, in the order weight, bias. Column i of U is sqrt(n) times the
gradient that sample i contributed to ``.grad`` (mean losses), so that F = U U^T and g = U 1 / sqrt(n).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg.gram import SCRATCH, gram_of_rows

Grads = tuple[Tensor, ...]


class PerSampleGradients(ABC):
    """The matrix U [p, n] of one block, never necessarily formed.

    ``shapes`` lists the canonical (rows, columns) shape of each parameter's gradient; vectors of length p travel
    as ``Grads`` tuples whose tensors have those many elements.

    Laws every subclass obeys, against ``to_dense()``: ``gram()`` = U^T U, ``mv(v)`` = U^T v,
    ``add_rmv_(v, c, beta)`` leaves beta v + U c in v. Sketched subclasses obey them up to their sketch, in
    ``gram`` and ``mv`` alike. A new subclass is one file: U is saved by the name of its class, and loaded by any of
    its ``names``: those that the class had before among them.
    """

    TYPES: ClassVar[dict[str, type[PerSampleGradients]]] = {}

    shapes: tuple[tuple[int, ...], ...]  # canonical (rows, columns) of each parameter's gradient

    def __init_subclass__(cls, names: tuple[str, ...] | None = None, **options: Any):
        super().__init_subclass__(**options)
        PerSampleGradients.TYPES.update(dict.fromkeys((cls.__name__,) if names is None else names, cls))

    @property
    def frozen_damping(self) -> bool:
        """Whether coefficients keep the damping of the refresh while the outer scale follows its schedule."""
        return False

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of columns."""

    @abstractmethod
    def tile(self, slot: int, start: int, stop: int) -> Float[Tensor, "n rows columns"]:
        """Return rows start..stop of every per-sample gradient of parameter ``slot``."""

    @abstractmethod
    def mv(self, v: Grads) -> Float[Tensor, " n"]:
        """Return U^T v."""

    @abstractmethod
    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        """Leave beta v + U c in the contiguous tensors of ``v``."""

    def gram(self) -> Float[Tensor, "n n"]:
        """Return U^T U, by default from tiles of the per-sample gradients. Cost: n^2 p and the tiles'."""
        return self.gram_by_tiles()

    def gram_by_tiles(self) -> Float[Tensor, "n n"]:
        """Return U^T U from tiles that never hold more than SCRATCH elements."""
        total: Tensor | None = None
        for slot, (rows, columns) in enumerate(self.shapes):
            step = max(1, SCRATCH // max(1, self.n * columns))
            for start in range(0, rows, step):
                part = gram_of_rows(self.tile(slot, start, min(rows, start + step)).reshape(self.n, -1))
                total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def mean_multiple(self, v: Grads, generator: torch.Generator) -> Tensor | None:
        """Return alpha if v = alpha U 1 / sqrt(n) to rounding, by a cheap test, else None.

        Then U^T v = alpha K 1 / sqrt(n) needs no pass over U. By default nothing is tested.
        """
        return None

    def carrier(self) -> PerSampleGradients:
        """Return the smallest U with the same ``add_rmv_``: what other ranks need of this one."""
        return self

    @property
    def unsketched(self) -> PerSampleGradients:
        """The U with exact products with the columns of ``add_rmv_``; this one where its own are exact."""
        return self

    def rmv(self, c: Float[Tensor, " n"]) -> Grads:
        """Return U c in canonical shapes."""
        out = tuple(c.new_zeros(rows, columns) for rows, columns in self.shapes)
        self.add_rmv_(out, c)
        return out

    def to_dense(self) -> Float[Tensor, "p n"]:
        """Return U as a matrix, parameters flattened in order. Memory: n p."""
        parts = [self.tile(slot, 0, shape[0]).reshape(self.n, -1) for slot, shape in enumerate(self.shapes)]
        return torch.cat(parts, 1).T

    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        return _bytes(self)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(_bytes(item) for item in value)
    if is_dataclass(value):
        return sum(_bytes(getattr(value, field.name)) for field in fields(value))
    return 0
