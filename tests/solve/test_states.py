"""Solve states: whatever is kept of K, coefficients, products and the spectrum are those of K."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.linalg import damped_power
from seng.solve import CholeskyState, DirectState, EigenState, SolveState

KINDS: dict[str, type[SolveState]] = {kind.name: kind for kind in (CholeskyState, DirectState, EigenState)}
ACCURACY = 1e-9  # float64, condition of K + damping I up to 1e5; a Cholesky factor is squared for other dampings


def system(n: int, p: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(17 * n + p)
    u = torch.randn(p, n, generator=generator, dtype=torch.float64)
    return u, torch.randn(p, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8),
    p=st.integers(1, 12),
    kind=st.sampled_from(sorted(KINDS)),
    damping=st.floats(1e-2, 1e2),
    ratio=st.sampled_from([1.0, 0.1, 7.0]),
    power=st.sampled_from([1.0, 0.5, 0.3]),
)
def test_coefficients_match_dense_power(n: int, p: int, kind: str, damping: float, ratio: float, power: float) -> None:
    u, g = system(n, p)
    state, failed = KINDS[kind].factorise(u.T @ u, torch.tensor(damping, dtype=torch.float64))
    now = torch.tensor(damping * ratio, dtype=torch.float64)
    direction = g + u @ state.coefficients(u.T @ g, now, power)
    dense = now**power * damped_power(u @ u.T, now, power, g)
    assert failed == 0
    assert type(state) is KINDS[kind]
    assert (direction - dense).norm() <= ACCURACY * g.norm()


@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_with_metric_are_those_of_both_powers(kind: str, power: float) -> None:
    u, g = system(6, 9)
    y, damping = u.T @ g, torch.tensor(0.3, dtype=torch.float64)
    state, _ = KINDS[kind].factorise(u.T @ u, damping)
    z, z_one = state.with_metric(y, damping, power)
    assert torch.equal(z, state.coefficients(y, damping, power))
    assert torch.equal(z_one, state.coefficients(y, damping, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_matvec_and_spectrum_are_those_of_the_gram(kind: str) -> None:
    u, _ = system(6, 4)
    k, x = u.T @ u, torch.arange(6, dtype=torch.float64)
    state, _ = KINDS[kind].factorise(k, torch.tensor(0.3, dtype=torch.float64))
    largest = float(k.diagonal().sum())
    torch.testing.assert_close(state.matvec(x), k @ x, rtol=0, atol=ACCURACY * largest * 10)
    torch.testing.assert_close(state.spectrum(), torch.linalg.eigvalsh(k).clamp(min=0), rtol=0, atol=ACCURACY * largest)
    assert (state.spectrum() >= 0).all()
    assert (state.spectrum().diff() >= 0).all()


def test_states_are_known_by_the_names_of_their_classes() -> None:
    assert set(KINDS.values()) <= set(SolveState.TYPES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_factorise_leaves_the_gram_alone(kind: str) -> None:
    u, _ = system(5, 4)
    k = u.T @ u
    before = k.clone()
    KINDS[kind].factorise(k, torch.tensor(0.1, dtype=torch.float64))
    assert torch.equal(k, before)


def test_eigenvalues_follow_every_change_of_damping_and_power_bit_for_bit() -> None:
    u, g = system(6, 8)
    y = u.T @ g
    state, _ = EigenState.factorise(u.T @ u, torch.tensor(0.1))
    assert isinstance(state, EigenState)
    for damping, power in [(0.1, 0.5), (0.1, 0.5), (0.2, 0.5), (0.2, 1.0), (0.1, 1.0), (0.1, 0.5)]:
        value = torch.tensor(damping, dtype=torch.float64)
        fresh = EigenState(state.values, state.vectors)
        assert torch.equal(state.coefficients(y, value, power), fresh.coefficients(y, value, power))
        pairs = zip(state.with_metric(y, value, power), fresh.with_metric(y, value, power), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
