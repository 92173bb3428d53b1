"""Solve states: what is kept of K between refreshes, and the coefficients it gives.

``init(gram, damping, cholesky=...)`` returns a state; ``state.coefficients(y, damping, power)`` returns z with
damping^power (F + damping I)^-power g = g + U z for y = U^T g.
"""

from .cholesky import CholeskyState
from .direct import DirectState, coefficients_together
from .eigen import EigenState
from .ladder import init
from .state import FactorisationError, LinAlgError, SolveState
from .vectors import from_vector, to_vector, vector_size

SOLVE_TYPES: dict[str, type[SolveState]] = {kind.__name__: kind for kind in (CholeskyState, DirectState, EigenState)}

__all__ = [
    "SOLVE_TYPES",
    "CholeskyState",
    "DirectState",
    "EigenState",
    "FactorisationError",
    "LinAlgError",
    "SolveState",
    "coefficients_together",
    "from_vector",
    "init",
    "to_vector",
    "vector_size",
]
