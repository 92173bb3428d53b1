"""Solve states as vectors."""

from __future__ import annotations

import pytest
import torch

from seng.solve import CholeskyState, DirectState, EigenState, SolveState

ROUNDING = 1e-12  # float64; K is mirrored at its diagonal on the way


def gram(n: int = 6) -> torch.Tensor:
    x = torch.randn(n, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x @ x.T


@pytest.mark.parametrize("solver", [EigenState, CholeskyState, DirectState])
def test_state_there_and_back_gives_the_same_coefficients(solver: type[SolveState]) -> None:
    damping, y = torch.tensor(0.3, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    state, _ = solver.factorise(gram(), damping)
    vector = state.to_vector()
    assert vector.shape == (solver.vector_size(6),)
    again = solver.from_vector(vector, 6, damping)
    assert type(again) is type(state) is solver
    got, expected = (s.coefficients(y, damping, 1.0) for s in (again, state))
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("solver", [CholeskyState, DirectState])
def test_triangles_are_shorter_than_eigenvectors(solver: type[SolveState]) -> None:
    assert solver.vector_size(10) < EigenState.vector_size(10)
