"""Natural gradients in sample space for PyTorch."""

from typing import TYPE_CHECKING

from .former import install
from .lazy import lazy

if TYPE_CHECKING:
    from . import layers as layers
    from . import testing as testing
    from .bases import BASES
    from .config import Options
    from .optimizer import SENG
    from .preconditioner import Preconditioner
    from .preflight import Plan, plan
    from .schedules import DenseThenSparse, Exponential, PolynomialLR
    from .verification import Report, verify
else:
    __getattr__ = lazy(
        __name__,
        {
            "BASES": "bases",
            "SENG": "optimizer",
            "DenseThenSparse": "schedules",
            "Exponential": "schedules",
            "Options": "config",
            "Plan": "preflight",
            "PolynomialLR": "schedules",
            "Preconditioner": "preconditioner",
            "Report": "verification",
            "plan": "preflight",
            "verify": "verification",
        },
    )

install()

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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
