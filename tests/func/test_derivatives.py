"""Derivatives at a point against ordinary autograd and closed forms; sweeps against nested differentiation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

from seng.errors import BatchError, OptionError
from seng.func import gradient, laplacian, natural_gradient, partial, taylor
from seng.func.derivatives import _sweep, nested_differentiation
from seng.func.trees import BoundModule, params_of

from .reference import DTYPE, draw, flat, network

EXACT = 1e-11  # float64, numbers of order one
X = draw(3, seed=1)


def cubic(x: Tensor) -> Tensor:
    return x[0] ** 3 * x[1] ** 2 + x[1] * x[2]


def swept(f: Any) -> bool:
    return _sweep(f, X, torch.eye(3, dtype=DTYPE), 2) is not None


SMOOTH = (
    nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.Mish, nn.ELU, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((), X[0] ** 3 * X[1] ** 2 + X[1] * X[2]),
        ((0,), 3 * X[0] ** 2 * X[1] ** 2),
        ((1, 2), torch.ones((), dtype=DTYPE)),
        ((0, 1), 6 * X[0] ** 2 * X[1]),
        ((0, 0, 1), 12 * X[0] * X[1]),
        ((0, 1, 0, 1), 12 * X[0]),
    ],
)
def test_partial_matches_the_closed_form(axes: tuple[int, ...], expected: Tensor) -> None:
    torch.testing.assert_close(partial(cubic, X, *axes), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("layer", SMOOTH)
def test_sweep_matches_hessian_for_every_activation(layer: type[nn.Module]) -> None:
    net = network(inputs=3, outputs=2)
    net[1], net[3] = layer(), layer()
    assert swept(net)
    h = hessian(lambda x: net(x))(X)
    assert isinstance(h, Tensor)
    for way in (nullcontext, nested_differentiation):
        with way():
            point = taylor(net, X)
            torch.testing.assert_close(point.value, net(X), rtol=EXACT, atol=EXACT)
            torch.testing.assert_close(point.first.mT, jacrev(net)(X), rtol=EXACT, atol=EXACT)
            torch.testing.assert_close(point.second.mT, h.diagonal(dim1=1, dim2=2), rtol=EXACT, atol=EXACT)
            torch.testing.assert_close(laplacian(net, X), point.second.sum(0), rtol=EXACT, atol=EXACT)


def test_directions_give_directional_derivatives() -> None:
    net, along = network(inputs=3), draw(4, 3, seed=2)
    h = hessian(lambda x: net(x)[0])(X)
    assert isinstance(h, Tensor)
    point = taylor(net, X, along)
    torch.testing.assert_close(point.first, along @ gradient(net, X).mT, rtol=EXACT, atol=EXACT)
    expected = torch.einsum("kd,de,ke->k", along, h, along)
    torch.testing.assert_close(point.second[:, 0], expected, rtol=EXACT, atol=EXACT)
    total = taylor(net, X, along, sum_second=True).second
    torch.testing.assert_close(total, point.second.sum(0, keepdim=True), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)],
        [nn.Linear(3, 1)],
        [nn.Tanh(), nn.Linear(3, 2), nn.Identity(), nn.GELU(approximate="tanh")],
    ],
)
def test_sweep_takes_any_chain(layers: list[nn.Module]) -> None:
    net = nn.Sequential(*layers).to(DTYPE)
    assert swept(net)
    with nested_differentiation():
        expected = laplacian(net, X)
    torch.testing.assert_close(laplacian(net, X), expected, rtol=EXACT, atol=EXACT)


def test_operations_without_a_rule_go_by_reverse_mode() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.CELU(), nn.Linear(4, 1)).to(DTYPE)
    assert not swept(net)
    h = hessian(lambda x: net(x)[0])(X)
    assert isinstance(h, Tensor)
    torch.testing.assert_close(laplacian(net, X)[0], h.trace(), rtol=EXACT, atol=EXACT)


def test_sweep_reads_bound_parameters_and_vectorises() -> None:
    net = network(inputs=3)
    layout = params_of(net, "test")
    bound = layout.bind([2 * p for p in layout.values()])
    assert isinstance(bound, BoundModule)
    double = network(inputs=3)
    with torch.no_grad():
        for p in double.parameters():
            p.mul_(2)
    points = draw(5, 3, seed=3)
    got = vmap(lambda x: laplacian(bound, x))(points)
    expected = torch.stack([laplacian(double, x) for x in points])
    torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)


def test_frozen_layers_stay_in_the_sweep() -> None:
    net = network(inputs=3)
    net[2].requires_grad_(False)
    d = []
    for way in (nullcontext, nested_differentiation):
        with way():
            d.append(flat(natural_gradient(lambda u, x: laplacian(u, x) - 1, net, draw(6, 3))[0]))
    torch.testing.assert_close(d[0], d[1], rtol=1e-7, atol=1e-7)


def test_batches_of_points_are_refused() -> None:
    net = network(inputs=3)
    for x in (draw(3, 3), draw(1)[0]):
        for call in (lambda x=x: laplacian(net, x), lambda x=x: taylor(net, x), lambda x=x: partial(net, x, 0)):
            with pytest.raises(BatchError, match="not one point.*vmap"):
                call()
    with pytest.raises(BatchError, match=r"expected x \[d\], and directions \[k, d\]"):
        taylor(net, X, draw(3))


@pytest.mark.parametrize(("order", "sum_second"), [(1, False), (5, False), (3, True), ("2", False)])
def test_orders_that_cannot_be_are_refused(order: Any, sum_second: bool) -> None:
    with pytest.raises(OptionError, match="order out of range: expected 2, 3 or 4"):
        taylor(network(inputs=3), X, order=order, sum_second=sum_second)
