"""Solvers: what is kept of K between refreshes, and the coefficients it gives. One file a solver, a class each.

``CholeskyState.factorise(gram, damping)`` returns a state; ``state.coefficients(y, damping, power)`` returns z with
damping^power (F + damping I)^-power g = g + U z for y = U^T g.
"""

from .cholesky import CholeskyState
from .direct import DirectState, coefficients_together
from .eigen import EigenState
from .state import FactorisationError, LinAlgError, SolveState

__all__ = [
    "CholeskyState",
    "DirectState",
    "EigenState",
    "FactorisationError",
    "LinAlgError",
    "SolveState",
    "coefficients_together",
]
