"""Estimators: how curvature is estimated from samples. One file an estimator, a line in the table gives it a name."""

from __future__ import annotations

from .auto import Auto
from .base import Choice, Cost, Estimator, Form, require_argument
from .exact import Exact, Operator, Rows
from .low_rank import LowRank
from .paper_code import PaperCode
from .sketched import Sketched
from .truncated import Truncated

__all__ = [
    "ESTIMATORS",
    "Auto",
    "Choice",
    "Cost",
    "Estimator",
    "Exact",
    "Form",
    "LowRank",
    "Operator",
    "PaperCode",
    "Rows",
    "Sketched",
    "Truncated",
    "require_argument",
]

# what a string is short for
ESTIMATORS: dict[str, type[Estimator]] = {
    "auto": Auto,
    "exact": Exact,
    "explicit": Sketched,
    "implicit": LowRank,
    "truncated": Truncated,
    "paper-code": PaperCode,
}
