"""Natural gradients in sample space for PyTorch."""

from typing import TYPE_CHECKING

from .former import install
from .lazy import lazy

if TYPE_CHECKING:
    from . import layers as layers
    from . import testing as testing
    from .bases import BASES
    from .config import Options
    from .distribution import Distributed, Global, Local, Sharded
    from .estimators import Auto, Exact, LowRank, PaperCode, Sketched, Truncated
    from .optimizer import SENG
    from .planning.report import Plan, plan
    from .preconditioner import Preconditioner
    from .schedules import DenseThenSparse, Exponential, PolynomialLR
    from .verification import Report, verify
else:
    __getattr__ = lazy(
        __name__,
        {
            "Auto": "estimators",
            "BASES": "bases",
            "DenseThenSparse": "schedules",
            "Distributed": "distribution",
            "Exact": "estimators",
            "Exponential": "schedules",
            "Global": "distribution",
            "Local": "distribution",
            "LowRank": "estimators",
            "Options": "config",
            "PaperCode": "estimators",
            "Plan": "planning.report",
            "PolynomialLR": "schedules",
            "Preconditioner": "preconditioner",
            "Report": "verification",
            "SENG": "optimizer",
            "Sharded": "distribution",
            "Sketched": "estimators",
            "Truncated": "estimators",
            "plan": "planning.report",
            "verify": "verification",
        },
    )

install()

__version__ = "0.1.0"

__all__ = [
    "BASES",
    "SENG",
    "Auto",
    "DenseThenSparse",
    "Distributed",
    "Exact",
    "Exponential",
    "Global",
    "Local",
    "LowRank",
    "Options",
    "PaperCode",
    "Plan",
    "PolynomialLR",
    "Preconditioner",
    "Report",
    "Sharded",
    "Sketched",
    "Truncated",
    "__version__",
    "plan",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
