"""Lanczos' method: coefficients to the tolerance asked for, or an honest refusal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seng.linalg import krylov_coefficients, shrinkage

N = 96
TINY = 1e-13  # last coordinate asked for in float64
CLOSE = 1e-10  # what that leaves of the error of z
SLACK = 5  # errors beyond the last coordinate: those of the steps that were not taken


def gram(spectrum: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64)).Q
    return basis @ (spectrum[:, None] * basis.T)


def vector(seed: int = 1) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(k: Tensor, y: Tensor, damping: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(k)
    return vectors @ (shrinkage(values, damping, power) * (vectors.T @ y))


def solve(k: Tensor, y: Tensor, damping: Tensor, power: float, tolerance: float) -> Tensor | None:
    z, close = krylov_coefficients(k[None], y[None], damping[None], power, tolerance)
    return z[0] if bool(close) else None


DECAYING = 10.0 ** -torch.linspace(0, 8, N, dtype=torch.float64)
DAMPING = torch.tensor(0.3, dtype=torch.float64)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
def test_krylov_coefficients_match_the_dense_power(power: float) -> None:
    k, y = gram(DECAYING), vector()
    z, expected = solve(k, y, DAMPING, power, TINY), dense(k, y, DAMPING, power)
    assert z is not None
    assert (z - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.parametrize("tolerance", [0.03, 1e-3, 1e-5])
def test_krylov_coefficients_are_as_close_as_asked(tolerance: float) -> None:
    for seed in range(5):
        k, y = gram(DECAYING, seed), vector(seed)
        z, expected = solve(k, y, DAMPING * 0.1, 0.5, tolerance), dense(k, y, DAMPING * 0.1, 0.5)
        assert z is not None
        assert (z - expected).norm() <= SLACK * tolerance * expected.norm()


def test_krylov_gives_up_where_eigenvalues_are_cheaper() -> None:
    k = gram(torch.linspace(0, 1, N, dtype=torch.float64))
    assert solve(k, vector(), DAMPING * 1e-6, 0.5, TINY) is None


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_krylov_stops_where_the_space_is_used_up(rank: int) -> None:
    spectrum = torch.zeros(N, dtype=torch.float64)
    spectrum[:rank] = 1.0 + torch.arange(rank, dtype=torch.float64)
    k = gram(spectrum)
    y = k @ vector()
    z = solve(k, y, DAMPING, 0.5, TINY)
    assert z is not None
    assert (z - dense(k, y, DAMPING, 0.5)).norm() <= CLOSE * max(float(y.norm()), 1.0)


def test_krylov_of_nothing_is_nothing() -> None:
    z = solve(gram(DECAYING), torch.zeros(N, dtype=torch.float64), DAMPING, 0.5, TINY)
    assert z is not None
    assert not z.any()


def test_krylov_systems_together_are_each_as_alone() -> None:
    """Those that need more steps, and those that no steps help, leave the others right."""
    grams = [gram(DECAYING), gram(DECAYING, 1), gram(torch.linspace(0, 1, N, dtype=torch.float64), 2)]
    ys = [vector(3), vector(4), vector(5)]
    damping = torch.stack([DAMPING, DAMPING * 0.5, DAMPING * 1e-6])
    z, close = krylov_coefficients(torch.stack(grams), torch.stack(ys), damping, 0.5, 1e-9)
    assert close.tolist() == [True, True, False]
    for k in range(2):
        expected = dense(grams[k], ys[k], damping[k], 0.5)
        assert (z[k] - expected).norm() <= SLACK * 1e-9 * expected.norm()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_krylov_of_few_samples_is_right_or_refuses(n: int) -> None:
    k, y = gram(DECAYING)[:n, :n], vector()[:n]
    z = solve(k, y, DAMPING, 0.5, TINY)
    assert z is None or (z - dense(k, y, DAMPING, 0.5)).norm() <= CLOSE * y.norm()


@pytest.mark.parametrize("exponent", [-33, -20, 20, 36])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_krylov_coefficients_scale_with_the_gram_to_the_ends_of_float32(exponent: int, power: float) -> None:
    k, y, scale = gram(DECAYING).float(), vector().float(), 10.0**exponent
    plain, _ = krylov_coefficients(k[None], y[None], DAMPING.float()[None], power, 1e-4)
    z, close = krylov_coefficients(k[None] * scale, y[None] * scale, DAMPING.float()[None] * scale, power, 1e-4)
    assert bool(close)
    assert (z - plain).norm() <= 1e-4 * plain.norm()
