"""Rows from factors of layers against a loop over ordinary autograd, and when they must not be taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import hessian, jvp
from torch.nn.utils import parametrizations

from seng.func import gradient, laplacian, layerwise, partial, taylor
from seng.func import gram as module
from seng.func.gram import gram
from seng.func.problem import problem_of, settings_of
from seng.func.rows import COPIES, Rows
from seng.func.trees import params_of

from .reference import DTYPE, draw, jacobian, network

EXACT = 1e-10  # float64, sums in another order
N = 7


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "SMALL", 0)


def rows_of_residual(residual: Any, params: Any, samples: Any, **options: Any) -> Rows:
    layout = params_of(params, "test")
    return problem_of(residual, layout, samples, settings_of("test", options), 0, "test").linearise().rows


def check(residual: Callable[[Any, Tensor], Tensor], params: Any, *, seen: bool = True, **options: Any) -> None:
    """Rows, squares, products and K are those of a loop over single samples."""
    samples = draw(N, 2, seed=5)
    rows = rows_of_residual(residual, params, samples, **options)
    assert (rows.factors is not None) == seen
    leaves = params_of(params, "test").leaves
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = [residual(params, x).reshape(-1) for x in samples]
    j = jacobian(outputs, list(leaves)) / sum(map(len, outputs)) ** 0.5
    got = torch.cat([rows.tile(k) for k in range(len(rows.pieces))])
    torch.testing.assert_close(got, j, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(rows.squares[0], j.square().sum(0), rtol=EXACT, atol=EXACT)
    v, c = draw(j.shape[1], seed=1), draw(len(j), seed=2)
    torch.testing.assert_close(rows.mv(v), j @ v, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(rows.rmv(c), j.mT @ c, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(gram(rows, DTYPE), j @ j.mT, rtol=EXACT, atol=EXACT)
    columns = torch.where(v > 0.5, v, 1.0)
    scaled = rows.scaled(columns)
    torch.testing.assert_close(scaled.rmv(c), (j * columns).mT @ c, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(gram(scaled, DTYPE), (j * columns) @ (j * columns).mT, rtol=EXACT, atol=EXACT)


def tied() -> nn.Sequential:
    net = network()
    net.insert(4, nn.Linear(6, 6, dtype=DTYPE))
    net[4].weight = net[2].weight
    return net


def weight_normed() -> nn.Sequential:
    net = network()
    parametrizations.weight_norm(net[2])
    return net


class Inverse(nn.Module):
    """A network beside a number, which residuals read."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.nu = network(outputs=2), nn.Parameter(torch.tensor(0.3, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * x[0]


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], Any]]] = {
    "values": (lambda u, x: u(x), network),
    "second order": (lambda u, x: laplacian(u, x) - 1, network),
    "several calls": (lambda u, x: laplacian(u, x) * u(x) + u(2 * x), network),
    "several outputs": (lambda u, x: torch.cat([laplacian(u, x), gradient(u, x)[0]]), lambda: network(outputs=3)),
    "mixed and third order": (lambda u, x: partial(u, x, 0, 0, 1) + taylor(u, x, order=3).third.sum(), network),  # pyright: ignore
    "tied weights": (lambda u, x: laplacian(u, x), tied),
    "a number beside the network": (lambda u, x: u(x) - u.nu * laplacian(u, x), Inverse),
    "many points of a sample": (lambda u, x: u(x * torch.arange(5.0)[:, None]).sum(), network),
    "layers of tensors": (
        lambda q, x: nn.functional.linear(nn.functional.linear(x, q["a"], q["b"]).tanh() * q["c"], q["c"][None]),
        lambda: {"a": draw(2, 2), "b": draw(2, seed=1), "c": draw(2, seed=2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("product", [True, False])
def test_rows_match_a_loop_over_samples(name: str, product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASS", -(10**6) if product else 10**6)
    monkeypatch.setattr(module, "STRIP", 3)
    monkeypatch.setattr(module, "COLUMNS", 10)
    residual, make = CASES[name]
    check(residual, make())


NESTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "grad": lambda u, x: torch.func.grad(lambda y: u(y)[0])(x).sum(),
    "jvp": lambda u, x: jvp(lambda y: u(y), (x,), (torch.ones_like(x),))[1],
    "hessian": lambda u, x: hessian(lambda y: u(y)[0])(x).diagonal().sum(),  # pyright: ignore
    "no rule": lambda u, x: laplacian(lambda y: u(y) * (y.norm() + 1), x),
    "caught": lambda u, x: _caught(u, x),
}


OTHERWISE: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], Any]]] = {
    "a weight under a parametrisation": (lambda u, x: laplacian(u, x), weight_normed),
    "a weight read beside its layer": (lambda u, x: laplacian(u, x) + u[2].weight.square().sum() * x[0], network),
    "a product": (
        lambda q, x: q["a"] @ x + nn.functional.linear(x, q["d"]),
        lambda: {"a": draw(2, 2), "d": draw(2, 2)},
    ),
    "no layer": (lambda q, x: q * x, lambda: draw(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_matrices_beside_layers_are_left_to_reverse_mode(name: str) -> None:
    residual, make = OTHERWISE[name]
    check(residual, make(), seen=False)


def _caught(u: Any, x: Tensor) -> Tensor:
    try:
        return torch.func.grad(lambda y: u(y)[0])(x).sum()
    except Exception:
        return u(x).sum()


@pytest.mark.parametrize("name", NESTED)
def test_functions_that_differentiate_within_are_left_to_reverse_mode(name: str) -> None:
    check(NESTED[name], network(), seen=False)


def test_whole_batches_have_no_factors() -> None:
    check_whole = rows_of_residual(lambda u, x: u(x), network(), draw(N, 2), per_sample=False)
    assert check_whole.factors is None


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(1, 6), min_size=1, max_size=2), st.integers(1, 8))
def test_terms_and_pieces_match_one_another(first: int, outputs: int, counts: list[int], per_piece: int) -> None:
    """K of several terms, with samples some at a time, is that of rows made without factors."""
    net = network(width=first, outputs=outputs)
    residuals = {"a": lambda u, x: laplacian(u, x), "b": lambda u, x: u(x)}
    names = list(residuals)[: len(counts)]
    batch = {name: draw(count, 2, seed=k) for k, (name, count) in enumerate(zip(names, counts, strict=True))}
    chosen = {name: residuals[name] for name in names}
    layout = params_of(net, "test")
    memory = max(COPIES * per_piece * outputs * layout.size * 8, 2**12 * outputs)
    with pytest.MonkeyPatch.context() as patch:
        rows = rows_of_residual(chosen, net, batch, memory=memory)
        patch.setattr("seng.func.rows.factors_of", lambda *args: None)
        plain = rows_of_residual(chosen, net, batch)
    assert plain.factors is None
    torch.testing.assert_close(gram(rows, DTYPE), gram(plain, DTYPE), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(rows.squares, plain.squares, rtol=EXACT, atol=EXACT)


def test_few_rows_are_made_by_reverse_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "SMALL", 10**6)
    check(lambda u, x: laplacian(u, x), network(), seen=False)


def test_zero_squares_are_exact() -> None:
    rows = rows_of_residual(lambda u, x: laplacian(u, x), network(), draw(N, 2))
    assert rows.squares[0, -1] == 0  # the last bias
