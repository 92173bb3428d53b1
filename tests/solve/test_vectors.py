"""Solve states as vectors."""

from __future__ import annotations

import pytest
import torch

from seng.solve import from_vector, init, to_vector, vector_size

ROUNDING = 1e-12  # float64; K is mirrored at its diagonal on the way


def gram(n: int = 6) -> torch.Tensor:
    x = torch.randn(n, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x @ x.T


@pytest.mark.parametrize(
    ("solver", "options"),
    [("eigen", {"cholesky": False}), ("cholesky", {"cholesky": True}), ("direct", {"cholesky": True, "once": True})],
)
def test_state_there_and_back_gives_the_same_coefficients(solver: str, options: dict[str, bool]) -> None:
    damping, y = torch.tensor(0.3, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    state, _ = init(gram(), damping, **options)  # type: ignore[arg-type]
    vector = to_vector(state, solver)
    assert vector is not None
    assert vector.shape == (vector_size(solver, 6),)
    again = from_vector(vector, solver, 6, damping)
    assert type(again) is type(state)
    got, expected = (s.coefficients(y, damping, 1.0) for s in (again, state))
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)


def test_state_of_another_kind_has_no_vector() -> None:
    state, _ = init(gram(), torch.tensor(0.3, dtype=torch.float64), cholesky=False)
    assert to_vector(state, "cholesky") is None
    assert to_vector(state, "direct") is None


@pytest.mark.parametrize("solver", ["cholesky", "direct"])
def test_triangles_are_shorter_than_eigenvectors(solver: str) -> None:
    assert vector_size(solver, 10) < vector_size("eigen", 10)
