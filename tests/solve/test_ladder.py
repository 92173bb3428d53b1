"""The ladder of factorisations, rung by rung."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seng.solve import CholeskyState, DirectState, EigenState, FactorisationError, SolveState
from seng.solve.cholesky import JITTERS

DAMPING = 1e-7  # far below the jitters, so that each of them decides
SOLVED = 1e-3  # relative error of a float32 solve; the jitter itself is at most 1e-4


def indefinite(lowest: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """A diagonal matrix with mean eigenvalue 1 and the given lowest one."""
    return torch.tensor([lowest, 1.5 - lowest, 1.5], dtype=dtype).diag()


def climb(gram: Tensor, solver: type[SolveState] = CholeskyState) -> tuple[SolveState, int]:
    return solver.factorise(gram, torch.tensor(DAMPING, dtype=gram.dtype))


def fail_cholesky(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
    real = torch.linalg.cholesky_ex

    def broken(matrix: Tensor) -> tuple[Tensor, Tensor]:
        factor, info = real(matrix)
        return factor, torch.ones_like(info) if matrix.dtype in dtypes else info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", broken)


def fail_eigen(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype, nan: bool = False) -> None:
    real = torch.linalg.eigh

    def broken(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = real(matrix)
        if matrix.dtype in dtypes and not nan:
            raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
        return values * float("nan") if matrix.dtype in dtypes else values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", broken)


def test_first_rung_holds_a_sound_matrix() -> None:
    state, failed = climb(indefinite(0.5))
    assert isinstance(state, CholeskyState)
    assert failed == 0


@pytest.mark.parametrize(("lowest", "rungs"), [(-5e-7, 1), (-5e-5, 2)])
def test_jitter_rungs_hold_small_negative_eigenvalues(lowest: float, rungs: int) -> None:
    gram = indefinite(lowest)
    state, failed = climb(gram)
    assert isinstance(state, CholeskyState)
    assert failed == rungs
    shift = DAMPING + JITTERS[rungs]
    torch.testing.assert_close(state.factor @ state.factor.T, gram + shift * torch.eye(3), rtol=1e-5, atol=1e-8)
    assert float(state.damping) == pytest.approx(DAMPING)  # asked for at the damping: a repeat is a mere solve


def test_float64_rung_holds_where_float32_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_cholesky(monkeypatch, torch.float32)
    gram = indefinite(0.5)
    state, failed = climb(gram)
    assert isinstance(state, CholeskyState)
    assert failed == len(JITTERS)
    assert state.factor.dtype == torch.float32
    y = torch.ones(3)
    solved = -state.coefficients(y, state.damping, 1.0)
    torch.testing.assert_close(solved, y / (gram.diagonal() + DAMPING), rtol=SOLVED, atol=0)


@pytest.mark.parametrize(("dtype", "rungs"), [(torch.float32, 2 * len(JITTERS)), (torch.float64, len(JITTERS))])
def test_eigenvalue_rung_holds_an_indefinite_matrix(dtype: torch.dtype, rungs: int) -> None:
    state, failed = climb(indefinite(-0.5, dtype))
    assert isinstance(state, EigenState)
    assert failed == rungs
    assert float(state.values[0]) == 0.0
    assert state.values.dtype == state.vectors.dtype == dtype


@pytest.mark.parametrize("nan", [True, False])
def test_last_rung_is_eigenvalues_in_float64(monkeypatch: pytest.MonkeyPatch, nan: bool) -> None:
    fail_eigen(monkeypatch, torch.float32, nan=nan)
    state, failed = climb(indefinite(0.5), EigenState)
    assert isinstance(state, EigenState)
    assert failed == 1
    assert state.values.dtype == torch.float32
    torch.testing.assert_close(state.values, torch.tensor([0.5, 1.0, 1.5]), rtol=SOLVED, atol=0)


@pytest.mark.parametrize("solver", [CholeskyState, EigenState])
def test_above_the_last_rung_is_an_error(monkeypatch: pytest.MonkeyPatch, solver: type[SolveState]) -> None:
    fail_cholesky(monkeypatch, torch.float32, torch.float64)
    fail_eigen(monkeypatch, torch.float32, torch.float64)
    with pytest.raises(FactorisationError, match="no factorisation of the Gram matrix converged"):
        climb(indefinite(0.5), solver)


@pytest.mark.parametrize("solver", [CholeskyState, EigenState])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gram_that_is_not_finite_is_refused(bad: float, solver: type[SolveState]) -> None:
    gram = torch.eye(4)
    gram[1, 1] = bad
    with pytest.raises(FactorisationError, match="not finite"):
        climb(gram, solver)


@pytest.mark.parametrize("solver", [CholeskyState, EigenState])
def test_nan_beside_the_diagonal_is_refused(solver: type[SolveState]) -> None:
    gram = torch.eye(4)
    gram[1, 0] = gram[0, 1] = float("nan")
    with pytest.raises(FactorisationError, match="Gram matrix"):
        climb(gram, solver)


@pytest.mark.parametrize("solver", [CholeskyState, DirectState])
def test_eigenvalues_asked_for_later_climb_the_ladder(
    monkeypatch: pytest.MonkeyPatch, solver: type[SolveState]
) -> None:
    gram = indefinite(0.5)
    state, _ = solver.factorise(gram, torch.tensor(0.1))
    expected = state.coefficients(torch.ones(3), torch.tensor(0.2), 0.5)
    fail_eigen(monkeypatch, torch.float32)
    got = state.coefficients(torch.ones(3), torch.tensor(0.2), 0.5)
    torch.testing.assert_close(got, expected, rtol=SOLVED, atol=0)
    fail_eigen(monkeypatch, torch.float32, torch.float64)
    with pytest.raises(FactorisationError, match="no factorisation of the Gram matrix converged"):
        state.coefficients(torch.ones(3), torch.tensor(0.2), 0.5)
