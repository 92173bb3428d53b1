"""Scientific problems, each a function to a Problem. One file a problem or a family; adding one is a line here."""

from __future__ import annotations

from collections.abc import Callable

from ..problem import Problem
from .burgers import burgers
from .diabetes import diabetes
from .heat import heat
from .helmholtz import helmholtz
from .inverse_poisson import inverse_poisson
from .poisson import poisson_2d, poisson_5d

__all__ = ["PROBLEMS", "summary"]

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "poisson-2d": poisson_2d,
    "poisson-5d": poisson_5d,
    "heat": heat,
    "burgers": burgers,
    "helmholtz": helmholtz,
    "inverse-poisson": inverse_poisson,
    "diabetes": diabetes,
}


def summary(name: str) -> str:
    """Return the first line of a problem's description."""
    return (PROBLEMS[name].__doc__ or "").splitlines()[0]
