"""Solve states as vectors of known length, so that one rank can hand its own to others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import pack_triangle, triangle_size, unpack_triangle
from .cholesky import CholeskyState
from .direct import DirectState
from .eigen import EigenState
from .state import SolveState


def vector_size(solver: str, n: int) -> int:
    """Return the length of a state's vector: eigenvectors travel whole, all else as a triangle."""
    return n + n * n if solver == "eigen" else triangle_size(n)


def to_vector(state: SolveState, solver: str) -> Float[Tensor, " m"] | None:
    """Return the state as a vector, or None where the ladder ended at another kind than the one wanted."""
    if solver == "eigen" and isinstance(state, EigenState):
        return torch.cat([state.values, state.vectors.reshape(-1)])
    if solver == "cholesky" and isinstance(state, CholeskyState):
        return pack_triangle(state.factor)
    return pack_triangle(state.gram) if solver == "direct" and isinstance(state, DirectState) else None


def from_vector(vector: Float[Tensor, " m"], solver: str, n: int, damping: Tensor) -> SolveState:
    """Undo ``to_vector``."""
    if solver == "eigen":
        return EigenState(vector[:n].clone(), vector[n:].view(n, n).clone())
    if solver == "cholesky":
        return CholeskyState(unpack_triangle(vector, n, symmetric=False), damping)
    return DirectState(unpack_triangle(vector, n, symmetric=True))
