"""Blocks made of several terms: parameters tied between modules, or a bias kept beside its weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Grads, PerSampleGradients
from .product import Product
from .rows import Rows


@dataclass(frozen=True)
class Combined(PerSampleGradients):
    """Sum of several terms on one set of parameters.

    Args:
        terms: U of each, with the same number of columns.
        slots: For each term, the positions of its parameters in the block.
        shapes: Canonical shapes of the block's parameters.
    """

    terms: tuple[PerSampleGradients, ...]
    slots: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        return self.terms[0].n

    @property
    def frozen_damping(self) -> bool:
        return any(term.frozen_damping for term in self.terms)

    def tile(self, slot: int, start: int, stop: int) -> Float[Tensor, "n rows columns"]:
        parts = [
            term.tile(slots.index(slot), start, stop)
            for term, slots in zip(self.terms, self.slots, strict=True)
            if slot in slots
        ]
        if not parts:  # a parameter of the block that no term reaches in this batch
            like = self.terms[0].tile(0, 0, 1)
            return like.new_zeros(self.n, stop - start, self.shapes[slot][1])
        return sum(parts[1:], parts[0])

    def gram(self) -> Float[Tensor, "n n"]:
        """Sum of the terms' where they share no parameter, else from tiles, which hold the cross terms."""
        used = [slot for slots in self.slots for slot in slots]
        if len(used) > len(set(used)):
            return self.gram_by_tiles()
        first, *others = (term.gram() for term in self.terms)
        return sum(others, first)

    def carrier(self) -> PerSampleGradients:
        return replace(self, terms=tuple(term.carrier() for term in self.terms))

    @property
    def unsketched(self) -> PerSampleGradients:
        terms = tuple(term.unsketched for term in self.terms)
        exact = all(term is own for term, own in zip(terms, self.terms, strict=True))
        return self if exact else replace(self, terms=terms)

    def mv(self, v: Grads) -> Float[Tensor, " n"]:
        pairs = zip(self.terms, self.slots, strict=True)
        return sum((term.mv(tuple(v[k] for k in slots)) for term, slots in pairs), v[0].new_zeros(self.n))

    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        if beta != 1.0:
            for x in v:
                x.mul_(beta)
        for term, slots in zip(self.terms, self.slots, strict=True):
            term.add_rmv_(tuple(v[k] for k in slots), c)


def beside_bias(io: Product, weight: PerSampleGradients, scale: float, dtype: torch.dtype) -> PerSampleGradients:
    """Return U of a layer from that of its weight: its bias, if it has one, is written out beside it."""
    if not io.bias:
        return weight
    bias = Rows((io.bias_rows(scale, dtype),), (io.shapes[1],))
    return Combined((weight, bias), ((0,), (1,)), io.shapes)
