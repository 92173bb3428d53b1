"""Per-sample gradients U as operators: as layers give them, and as estimators keep them. One kind of U a file."""

from __future__ import annotations

from .base import Grads, PerSampleGradients
from .combined import Combined, beside_bias
from .layer import LayerGradients, join_batches, join_uses
from .lookup import Lookup
from .paper_code import PaperCode, as_released
from .product import Product, implicit_gram_is_cheaper
from .rows import Rows
from .shape import Shape, Spec
from .sketched import Sketched, low_rank, sketch_rows, sketch_sides
from .truncated import TOLERANCE, combine, merge, truncate

LAYER_KINDS: dict[str, type[LayerGradients]] = {kind.kind: kind for kind in (Product, Lookup, Rows)}

__all__ = [
    "LAYER_KINDS",
    "TOLERANCE",
    "Combined",
    "Grads",
    "LayerGradients",
    "Lookup",
    "PaperCode",
    "PerSampleGradients",
    "Product",
    "Rows",
    "Shape",
    "Sketched",
    "Spec",
    "as_released",
    "beside_bias",
    "combine",
    "implicit_gram_is_cheaper",
    "join_batches",
    "join_uses",
    "low_rank",
    "merge",
    "sketch_rows",
    "sketch_sides",
    "truncate",
]
