"""Derivatives at a point against ordinary autograd and closed forms; the sweep against forward mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, vmap

from seng.errors import BatchError
from seng.func import gradient, laplacian, natural_gradient, partial, taylor
from seng.func.derivatives import SMOOTH, _chain
from seng.func.trees import BoundModule, params_of

from .reference import DTYPE, draw, flat, network

EXACT = 1e-11  # float64, numbers of order one
X = draw(3, seed=1)


def cubic(x: Tensor) -> Tensor:
    return x[0] ** 3 * x[1] ** 2 + x[1] * x[2]


def hidden(net: nn.Module) -> nn.Module:
    """The same function, of a type the sweep does not know."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    return Hidden()


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


@pytest.mark.parametrize("layer", [kind for kind in SMOOTH if kind is not nn.Identity])
def test_sweep_matches_hessian_for_every_activation(layer: type[nn.Module]) -> None:
    net = network(inputs=3, outputs=2)
    net[1], net[3] = layer(), layer()
    assert _chain(net) is not None
    assert _chain(hidden(net)) is None
    h = hessian(lambda x: net(x))(X)
    assert isinstance(h, Tensor)
    for f in (net, hidden(net)):
        point = taylor(f, X)
        torch.testing.assert_close(point.value, net(X), rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(point.first.mT, gradient(net, X), rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(point.second.mT, h.diagonal(dim1=1, dim2=2), rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(laplacian(f, X), point.second.sum(0), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("wrap", [lambda net: net, hidden])
def test_directions_give_directional_derivatives(wrap: type) -> None:
    net, along = network(inputs=3), draw(4, 3, seed=2)
    h = hessian(lambda x: net(x)[0])(X)
    assert isinstance(h, Tensor)
    point = taylor(wrap(net), X, along)
    torch.testing.assert_close(point.first, along @ gradient(net, X).mT, rtol=EXACT, atol=EXACT)
    expected = torch.einsum("kd,de,ke->k", along, h, along)
    torch.testing.assert_close(point.second[:, 0], expected, rtol=EXACT, atol=EXACT)
    total = taylor(wrap(net), X, along, sum_second=True).second
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
    assert _chain(net) is not None
    torch.testing.assert_close(laplacian(net, X), laplacian(hidden(net), X), rtol=EXACT, atol=EXACT)


def test_unknown_layers_go_by_forward_mode() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).to(DTYPE)
    assert _chain(net) is None
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
    d = [flat(natural_gradient(lambda u, x: laplacian(u, x) - 1, f, draw(6, 3))[0]) for f in (net, hidden(net))]
    torch.testing.assert_close(d[0], d[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("net", [network(inputs=3), hidden(network(inputs=3))])
def test_batches_of_points_are_refused(net: nn.Module) -> None:
    for x in (draw(3, 3), draw(1)[0]):
        for call in (lambda x=x: laplacian(net, x), lambda x=x: taylor(net, x), lambda x=x: partial(net, x, 0)):
            with pytest.raises(BatchError, match="not one point.*vmap"):
                call()
    with pytest.raises(BatchError, match=r"expected x \[d\], and directions \[k, d\]"):
        taylor(net, X, draw(3))
