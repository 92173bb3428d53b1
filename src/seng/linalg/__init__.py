"""Pure tensor functions, one theorem each: no modules, no random state."""

from .gram import gram_of_products, gram_of_rows
from .krylov import krylov_coefficients
from .lowrank import low_rank_products
from .powers import damped_power, shrinkage, shrinkages
from .triangles import pack_triangle, triangle_size, unpack_triangle
from .woodbury import cholesky_coefficients, metric_length

__all__ = [
    "cholesky_coefficients",
    "damped_power",
    "gram_of_products",
    "gram_of_rows",
    "krylov_coefficients",
    "low_rank_products",
    "metric_length",
    "pack_triangle",
    "shrinkage",
    "shrinkages",
    "triangle_size",
    "unpack_triangle",
]
