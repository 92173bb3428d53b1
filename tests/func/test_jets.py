"""Sweeps of whole functions against reverse mode: every rule, drawn networks, and what has no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from seng.func import gradient, laplacian, natural_gradient, partial, taylor, verify
from seng.func.derivatives import _sweep, nested_differentiation

from .reference import DTYPE, draw, flat, network

EXACT = 1e-10  # float64, derivatives of fourth order of size up to 1e2
FINE = 1e-6  # a stencil of fourth order in float64
X = 0.3 + 0.5 * draw(3, seed=1)
A, B, M = draw(3, seed=2), draw(2, 3, seed=3), draw(3, 3, seed=4)
Fn = Callable[[Tensor], Tensor]


def swept(f: Fn, order: int = 4) -> bool:
    return _sweep(f, X, torch.eye(3, dtype=DTYPE), order) is not None


def check(f: Fn, tolerance: float = EXACT) -> None:
    """Value and derivatives to fourth order, pure, summed and mixed, are those of nested reverse mode."""
    along = torch.cat([torch.eye(3, dtype=DTYPE), draw(1, 3, seed=9)])
    calls: list[Callable[[], Any]] = [
        lambda: taylor(f, X, along, order=4), lambda: taylor(f, X, along, order=3), lambda: taylor(f, X, along),
        lambda: taylor(f, X, along, sum_second=True), lambda: gradient(f, X), lambda: partial(f, X, 0, 2, 0),
        lambda: partial(f, X, 1, 0), lambda: partial(f, X, -1),
    ]  # fmt: skip
    for call in calls:
        got = call()
        with nested_differentiation():
            expected = call()
        for x, y in zip(*(vars(z).values() if hasattr(z, "first") else [z] for z in (got, expected)), strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


RULED: dict[str, Fn] = {
    **{name: getattr(torch, name) for name in (
        "tanh", "sigmoid", "exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "log", "log1p", "atan", "erf",
        "square", "sqrt", "rsqrt", "reciprocal", "neg",
    )},
    **{name: getattr(F, name) for name in (
        "softplus", "logsigmoid", "elu", "silu", "gelu", "mish", "softsign", "tanhshrink",
    )},
    "elu of both signs": lambda x: F.elu(x - 0.5, alpha=0.7),
    "softplus of a rate": lambda x: F.softplus(x, beta=3.0, threshold=2.0),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softsign of both signs": lambda x: F.softsign(x - 0.5),
    "powers": lambda x: x**3 + x**0 + x**-1.5 + torch.pow(x, 2) + (x - X.clone()) ** 2 + 2**x,
    "arithmetic": lambda x: (2 * x + A - x / A) * x / (1 + x) - (3 - x) * (1 / x) + 2.0 / (1 + x * x),
    "alpha": lambda x: torch.add(x, x * x, alpha=2) + torch.sub(A, x, alpha=3) - torch.rsub(x, A),
    "broadcasting": lambda x: (x * M + x[:, None] * M[:, :2].mT[:, None]).sum(1) + (x + B) * (B / x) + x[0] * B * x,
    "sum of ranks": lambda x: x + x.outer(x) + x[0] + B.sum() * x,
    "matmul": lambda x: M @ x + x @ M + (x[None] @ M)[0] + torch.mv(M, x) * x.dot(A) + (B @ x).sum(),
    "products of jets": lambda x: x.outer(x * x) @ x + torch.einsum("i,j->ij", x, x.sin())[0] + x.dot(x) * x,
    "einsum": lambda x: torch.einsum("ij,j,i->i", M, x, x.exp()),
    "linear": lambda x: F.linear(x, B) * F.linear(x[None], M, A)[0, :2] + F.linear(A, x.outer(x), x)[:2],
    "shapes": lambda x: x.view(3, 1).expand(3, 2).reshape(2, 3).mT.flatten()[:4].unflatten(0, (2, 2)).sum(0)
    * x.unsqueeze(0).squeeze().flip(0).roll(1)[1],
    "parts": lambda x: x[..., None, :2] * x[1:] + x[-1] * x[[0, 2]] + x.split(2)[0] * x.unbind()[0] + x.select(0, 1),
    "iteration": lambda x: torch.stack([a * a for a in x]).sum() * torch.stack([*x]),
    "joined": lambda x: torch.cat([x, A, x * x]) * torch.stack([x, A, x.sin()]).sum(1).repeat(3),
    "sums": lambda x: x.sum() * x.mean() + x.outer(x).sum(0) * x.cumsum(0) + x.outer(x).mean(1, keepdim=True),
    "products": lambda x: x.prod() + x.outer(x).prod(1) * (x * (1 - x)).prod(),
    "where": lambda x: torch.where(x > 0.5, x * x, x.sin()) + torch.where(x < 0.5, 0.0, x) + torch.where(x > 9, x, A),
    "softmax": lambda x: x.softmax(0) * F.softmax(x * x, dim=-1),
    "layer_norm": lambda x: F.layer_norm(x * x, (3,), A, A),
    "changed in place": lambda x: _add_in_place(x * 2),
    "constants": lambda x: x * torch.ones_like(x) + x.new_zeros(3) + torch.zeros(3, dtype=x.dtype) + len(x) * x,
    "sizes": lambda x: x.reshape(x.shape[0], x.ndim) * x.numel() + x.to(torch.float64) * x.dim() * x.size(0),
    "hypernetwork": lambda x: F.linear(x.sin(), x.outer(A), x * x),
}  # fmt: skip


def _add_in_place(y: Tensor) -> Tensor:
    y += 0.5
    y *= A
    y -= 1
    y /= 2
    return F.silu(y, inplace=True)


@pytest.mark.parametrize("name", RULED)
def test_rule_matches_reverse_mode(name: str) -> None:
    assert swept(RULED[name])
    check(RULED[name])


class Cut(Function):
    """x^3 whose derivative is said to be 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _cut(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.sin()
    return scale * x * x


def _caught(x: Tensor) -> Tensor:
    try:
        return torch.special.i0(x) * x  # without a rule
    except Exception:
        return x


def _caught_power(x: Tensor) -> Tensor:
    try:
        return x**A  # a power that is no number
    except Exception:
        return x


def _old_name(x: Tensor) -> Tensor:
    y = x * 2
    z = y.view(3)
    y += 1
    return z * y


def _old_value(x: Tensor) -> Tensor:
    y = x * 2
    F.silu(y, inplace=True)
    return y * y


def _written(x: Tensor) -> Tensor:
    y = torch.zeros(2, 3, dtype=x.dtype) * x
    y[0] = x * x
    return y


UNRULED: dict[str, Fn] = {
    "an autograd function": lambda x: Cut.apply(x) * x,  # pyright: ignore[reportOptionalCall]
    "no_grad": _cut,
    "detach": lambda x: x.detach() * x * x,
    "an error that is caught": _caught,
    "an error within a rule that is caught": _caught_power,
    "a view of what changed": _old_name,
    "a value that changed": _old_value,
    "a part that is written": _written,
    "no rule": lambda x: torch.special.i0(x) * x,
    "a norm": lambda x: x.norm() * x,
    "solve": lambda x: torch.linalg.solve(M + torch.eye(3, dtype=DTYPE) * x, x),
    "kinks": lambda x: (x - 0.5).abs() * x + F.relu(x) * x + x.clamp(min=0.4) * x,
    "a product of many": lambda x: x.repeat(6).prod() * x,
    "an output that does not depend": lambda x: A * 1.0,
    "a nested gradient": lambda x: torch.func.grad(lambda y: (y**3).sum())(x) * x,
}


@pytest.mark.parametrize("name", UNRULED)
def test_what_has_no_rule_is_differentiated_by_reverse_mode(name: str) -> None:
    assert not swept(UNRULED[name])
    check(UNRULED[name])


class Net(nn.Module):
    """A network as they are written for equations: features, gates, skips, several outputs, a hard constraint."""

    def __init__(self, features: str, body: str, activation: Fn, outputs: int, constraint: str) -> None:
        super().__init__()
        self.features, self.body, self.activation, self.constraint = features, body, activation, constraint
        width = {"periodic": 6, "scaled": 3, "none": 3}[features]
        self.first, self.gate = nn.Linear(width, 5), nn.Linear(width, 5)
        self.hidden = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.last = nn.Linear(5, outputs)
        self.scale = nn.Parameter(torch.tensor([1.0, 0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        z = {
            "periodic": lambda: torch.cat([torch.sin(self.scale * x), torch.cos(2 * x)], dim=-1),
            "scaled": lambda: 2 * (x - 0.1) / 0.7 - 1,
            "none": lambda: x,
        }[self.features]()  # fmt: skip
        u, v = self.activation(self.gate(z)), self.activation(self.first(z))
        h = v
        for layer in self.hidden:
            g = self.activation(layer(h))
            h = {"plain": lambda g=g: g, "skip": lambda g=g, h=h: h + g, "gated": lambda g=g: (1 - g) * u + g * v}[
                self.body
            ]()
        y = self.last(h)
        if self.constraint == "factor":
            return y * x[0] * (1 - x[0]) * torch.prod(1 - x[1:] ** 2)
        return x[0] ** 2 + torch.sin(x[1]) * y if self.constraint == "offset" else y


NETS = st.builds(
    Net, st.sampled_from(["periodic", "scaled", "none"]), st.sampled_from(["plain", "skip", "gated"]),
    st.sampled_from([torch.tanh, torch.sin, F.silu, F.gelu, F.softplus, torch.sigmoid]), st.integers(1, 3),
    st.sampled_from(["factor", "offset", "none"]),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(NETS, st.integers(0, 9))
def test_drawn_networks_match_reverse_mode(net: Net, seed: int) -> None:
    net = net.to(DTYPE)
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(2 * draw(*p.shape, seed=10 * seed + k) - 1)
    assert swept(net)
    check(net)


@settings(max_examples=10, deadline=None)
@given(NETS)
def test_rows_of_drawn_networks_match_differences(net: Net) -> None:
    def residual(u: Net, x: Tensor) -> Tensor:
        point = taylor(u, x, order=3)
        assert point.third is not None
        return point.third.sum(0) + laplacian(u, x) * u(x) + partial(u, x, 0, 1) - u.scale[0] * gradient(u, x)[..., 2]

    assert verify(residual, net.to(DTYPE), draw(3, 3, seed=5))["residual"] < FINE


def test_directions_are_those_of_reverse_mode() -> None:
    net, found = network(inputs=3), []
    for sweep in (True, False):
        with torch.random.fork_rng():
            call = lambda: natural_gradient(lambda u, x: partial(u, x, 0, 1, 0) + laplacian(u, x), net, draw(6, 3))  # noqa: E731
            if sweep:
                found.append(flat(call()[0]))
            else:
                with nested_differentiation():
                    found.append(flat(call()[0]))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_laplacian_of_a_laplacian_is_the_sum_of_fourth_derivatives() -> None:
    net = network(inputs=3)
    got = laplacian(lambda y: laplacian(net, y), X)
    with nested_differentiation():
        expected = sum((partial(net, X, i, i, j, j) for i in range(3) for j in range(3)), torch.zeros(1, dtype=DTYPE))
    torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)


def test_sweeps_leave_no_graph_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert not laplacian(network(inputs=3), X).requires_grad
    assert laplacian(network(inputs=3), X).requires_grad
