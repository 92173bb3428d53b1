"""Factorisations that fail upwards: jitter, then float64, then eigenvalues, then an error the caller handles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .cholesky import CholeskyState
from .direct import DirectState
from .eigen import eigen
from .state import FactorisationError, SolveState

JITTERS = (0.0, 1e-6, 1e-4)  # multiples of the mean eigenvalue added to the diagonal, one after the other


def init(gram: Float[Tensor, "n n"], damping: Tensor, *, cholesky: bool, once: bool = False) -> tuple[SolveState, int]:
    """Factorise K.

    Args:
        gram: K, symmetric positive semidefinite up to rounding.
        damping: > 0, 0-d.
        cholesky: Prefer the Cholesky factor of K + damping I over eigenvalues of K.
        once: The state serves a single direction: keep K, factorise nothing.

    Returns:
        The state, and how many rungs of the ladder failed before one held.

    Raises:
        FactorisationError: No rung held.

    Cost: n^3 / 3 multiply-adds for Cholesky, about 10 times that for eigenvalues.
    """
    if once:
        return DirectState(gram), 0
    if not bool(gram.diagonal().sum().isfinite()):
        raise FactorisationError("the Gram matrix is not finite")
    failed = 0
    if cholesky:
        for dtype in dict.fromkeys((gram.dtype, torch.float64)):
            for jitter in JITTERS:
                state = _try_cholesky(gram, damping, jitter, dtype)
                if state is not None:
                    return state, failed
                failed += 1
    state, more = eigen(gram)
    return state, failed + more


def _try_cholesky(gram: Tensor, damping: Tensor, jitter: float, dtype: torch.dtype) -> CholeskyState | None:
    shift = damping.to(dtype) + jitter * gram.diagonal().mean().to(dtype) if jitter else damping.to(dtype)
    shifted = gram.to(dtype, copy=True)
    shifted.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0:
        return None
    # the jitter stays unnamed: coefficients are asked for at `damping`, and off by the jitter alone
    return CholeskyState(factor.to(gram.dtype), damping)
