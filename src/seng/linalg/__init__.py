"""Pure tensor functions, one theorem each: no modules, no random state."""

from .gram import gram_of_products, gram_of_rows
from .krylov import krylov_coefficients
from .lowrank import low_rank_products
from .powers import damped_power, shrinkage
from .triangles import pack_triangle, triangle_size, unpack_triangle
from .woodbury import cholesky_coefficients, eigen_coefficients, inverse_quadratic

__all__ = [
    "cholesky_coefficients",
    "damped_power",
    "eigen_coefficients",
    "gram_of_products",
    "gram_of_rows",
    "inverse_quadratic",
    "krylov_coefficients",
    "low_rank_products",
    "pack_triangle",
    "shrinkage",
    "triangle_size",
    "unpack_triangle",
]
