"""Factors: U as an operator, and how it is made of what a layer captured. One file a form."""

from __future__ import annotations

from .base import Factor
from .combined import Combined, beside_bias
from .explicit import Explicit, explicit, thin
from .kronecker import Kronecker, implicit_gram_is_cheaper, kronecker
from .lookup import LookupFactor, lookup
from .paper_code import PaperCode, as_released
from .sketched import Sketched, low_rank, sketch_rows, sketch_sides
from .truncated import TOLERANCE, combine, merge, truncate

__all__ = [
    "TOLERANCE",
    "Combined",
    "Explicit",
    "Factor",
    "Kronecker",
    "LookupFactor",
    "PaperCode",
    "Sketched",
    "as_released",
    "beside_bias",
    "combine",
    "explicit",
    "implicit_gram_is_cheaper",
    "kronecker",
    "lookup",
    "low_rank",
    "merge",
    "sketch_rows",
    "sketch_sides",
    "thin",
    "truncate",
]
