"""Natural gradients in sample space for PyTorch."""

from .bases import BASES
from .config import Options
from .optimizer import SENG
from .preconditioner import Preconditioner
from .preflight import Plan, Report, plan, verify
from .schedules import DenseThenSparse, Exponential, PolynomialLR

__version__ = "0.1.0"

__all__ = [
    "BASES",
    "SENG",
    "DenseThenSparse",
    "Exponential",
    "Options",
    "Plan",
    "PolynomialLR",
    "Preconditioner",
    "Report",
    "__version__",
    "plan",
    "verify",
]
