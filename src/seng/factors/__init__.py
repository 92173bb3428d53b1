"""Factors: U as an operator. One file a form; an estimator is a line in the table.

An estimator turns what a layer captured into a Factor; the planner chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..types import Choice, LayerIO, Lookup, Product
from .base import Factor
from .combined import Combined
from .explicit import Explicit, explicit, thin
from .kronecker import Kronecker, implicit_gram_is_cheaper, kronecker
from .lookup import LookupFactor, lookup
from .paper_code import PaperCode, as_released
from .sketched import Sketched, low_rank, sketch_rows, sketch_sides
from .truncated import combine, merge, truncate

__all__ = [
    "ESTIMATORS",
    "FACTOR_TYPES",
    "Combined",
    "Explicit",
    "Factor",
    "Kronecker",
    "LookupFactor",
    "PaperCode",
    "Sketched",
    "build_factor",
    "combine",
    "implicit_gram_is_cheaper",
    "merge",
    "thin",
    "truncate",
]

Estimator = Callable[[LayerIO, Choice, float, torch.dtype, torch.Generator], Factor]


def _operator(io: LayerIO, choice: Choice, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Factor:
    """Keep what was captured; nothing a sample is formed."""
    if isinstance(io, Product):
        return kronecker(io, scale, dtype)
    return lookup(io, scale, dtype) if isinstance(io, Lookup) else explicit(io, scale, dtype)


def _rows(io: LayerIO, choice: Choice, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Factor:
    """Write the per-sample gradients out, on as few columns as they need; never those of an embedding."""
    return lookup(io, scale, dtype) if isinstance(io, Lookup) else thin(explicit(io, scale, dtype))


def _sketched_rows(io: LayerIO, choice: Choice, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Factor:
    """Write them out, and sketch the least squares problem (PAPER section 2); embeddings stay exact."""
    if isinstance(io, Lookup):
        return lookup(io, scale, dtype)
    return sketch_rows(explicit(io, scale, dtype), choice.sketch, choice.sketch_size, generator)


def _implicit(io: LayerIO, choice: Choice, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Factor:
    """Low rank a sample and row sampling on both sides (PAPER section 3); layers that are no product stay exact."""
    if not isinstance(io, Product):
        return _rows(io, choice, scale, dtype, generator)
    factor = low_rank(io, choice.rank, scale, dtype, generator)
    return _beside_bias(io, sketch_sides(factor, choice.sketch, choice.sketch_size, generator), scale, dtype)


def _paper_code(io: LayerIO, choice: Choice, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Factor:
    """The released estimator (PAPER section 8): always uniform rows; implicit above the planner's threshold."""
    if isinstance(io, Lookup):
        return lookup(io, scale, dtype)
    if not isinstance(io, Product) or not choice.implicit:
        return as_released(sketch_rows(explicit(io, scale, dtype), "uniform", choice.sketch_size, generator))
    factor = low_rank(io, choice.rank, scale, dtype, generator)
    return _beside_bias(io, as_released(sketch_sides(factor, "uniform", choice.sketch_size, generator)), scale, dtype)


def _beside_bias(io: Product, weight: Factor, scale: float, dtype: torch.dtype) -> Factor:
    if not io.bias:
        return weight
    rows = io.g.sum(3, dtype=dtype).transpose(0, 1).reshape(io.n, -1) * scale
    bias = Explicit((rows,), (io.shapes[1],))
    return Combined((weight, bias), ((0,), (1,)), io.shapes)


ESTIMATORS: dict[str, Estimator] = {
    "operator": _operator,
    "rows": _rows,
    "sketched-rows": _sketched_rows,
    "implicit": _implicit,
    "truncated": _operator,  # compressed by the preconditioner once the damping is known
    "paper-code": _paper_code,
}

FACTOR_TYPES: dict[str, type[Factor]] = {
    kind.__name__: kind for kind in (Combined, Explicit, Kronecker, LookupFactor, PaperCode, Sketched)
}


def build_factor(io: LayerIO, choice: Choice, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Factor:
    """Return U as the chosen estimator keeps it; ``scale`` multiplies every column."""
    return ESTIMATORS[choice.estimator](io, choice, scale, dtype, generator)
