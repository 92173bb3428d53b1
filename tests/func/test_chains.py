"""Derivatives of any Sequential, and rows of them, against ordinary autograd, whatever its layers and hooks do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from seng.errors import BatchError
from seng.func import gradient, laplacian, natural_gradient, partial, taylor, verify
from seng.func.rules import RULES, of_one_number

from .reference import DTYPE, dense, derivative, draw, flat, parameters

EXACT = 1e-11  # float64, numbers of order one
SOLVED = 1e-8  # systems of condition up to 1e3
FINE = 1e-6  # a stencil of fourth order in float64
X = draw(2, seed=7)


class Sine(nn.Module):
    """An activation with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.rate * x)


class Squared(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).square()


class Skip(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def plain(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        net = plain()
        change(net)
        return net

    return make


def _tie(net: nn.Sequential) -> None:
    net.insert(4, nn.Linear(6, 6))
    net[4].weight = net[2].weight


def _replace_forward(net: nn.Sequential) -> None:
    net[1].forward = lambda input: input**3


NETS: dict[str, Callable[[], nn.Sequential]] = {
    "hook of a layer": changed(lambda net: net[0].register_forward_hook(lambda *passed: 2 * passed[2])),
    "hook before an activation": changed(
        lambda net: net[1].register_forward_pre_hook(lambda module, args: args[0] + 1)
    ),
    "hook of the whole": changed(lambda net: net.register_forward_pre_hook(lambda module, args: 2 * args[0])),
    "hook of a part": lambda: nn.Sequential(changed(lambda net: net.register_forward_hook(lambda *a: a[2].sin()))()),
    "weight norm": changed(lambda net: parametrizations.weight_norm(net[0])),
    "weight norm of old": changed(lambda net: nn.utils.weight_norm(net[0])),
    "spectral norm": changed(lambda net: parametrizations.spectral_norm(net[2]).eval()),
    "pruned": changed(lambda net: prune.random_unstructured(net[2], "weight", 0.5)),
    "forward of the object": changed(_replace_forward),
    "class of its own": lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), Squared(4, 1)),
    "skip": lambda: nn.Sequential(Skip(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1)),
    "softmax": lambda: nn.Sequential(nn.Linear(2, 5), nn.Softmax(-1), nn.Linear(5, 1)),
    "plain": plain,
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 6), nn.Sequential(nn.Tanh())), nn.Linear(6, 1)),
    "tied weight": changed(_tie),
    "in place": lambda: nn.Sequential(nn.Linear(2, 6), nn.SiLU(inplace=True), nn.Linear(6, 1)),
    "in place at first": lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)),
    "activation with a parameter": lambda: nn.Sequential(nn.Linear(2, 6), Sine(), nn.Linear(6, 1)),
}


def second(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def residual(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        slope = derivative(net(x.clone())[0], x)
        return derivative(slope[0], x)[0] + derivative(slope[1], x)[1] - 1

    return residual


def made(make: Callable[[], nn.Sequential]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(DTYPE)


def check(net: nn.Sequential) -> None:
    """Value, Laplacian and the direction of a Laplacian residual are those of ordinary autograd."""
    samples = draw(5, 2, seed=3)
    expected = dense({"r": second(net)}, {"r": samples}, parameters(net))
    before = samples.clone()
    point = taylor(net, X)
    torch.testing.assert_close(point.value, net(X.clone()), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(point.first.mT, gradient(net, X), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(laplacian(net, X)[0] - 1, second(net)(X), rtol=EXACT, atol=EXACT)
    ours: Callable[[Any, Tensor], Tensor] = lambda u, x: laplacian(u, x) - 1  # noqa: E731
    d, _ = natural_gradient(ours, net, samples, damping=0.01, damping_mode="absolute")
    torch.testing.assert_close(flat(d), expected.direction(0.01), rtol=SOLVED, atol=SOLVED)
    assert verify(ours, net, samples)["residual"] < FINE
    assert torch.equal(samples, before)


@pytest.mark.parametrize("name", NETS)
def test_derivatives_and_directions_match_autograd(name: str) -> None:
    check(made(NETS[name]))


LAYERS = st.sampled_from(["shared linear", "linear", "shared tanh", "gelu", "nested", "hook", "sine", "shared sine"])


@settings(max_examples=15, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=4))
def test_drawn_sequentials_match_autograd(names: list[str]) -> None:
    shared = {"shared linear": nn.Linear(3, 3), "shared tanh": nn.Tanh(), "shared sine": Sine()}
    hooked = nn.Tanh()
    hooked.register_forward_hook(lambda *passed: 2 * passed[2])
    own: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(3, 3), "gelu": nn.GELU, "hook": lambda: hooked, "sine": Sine,
        "nested": lambda: nn.Sequential(nn.Linear(3, 3), nn.SiLU(inplace=True)),
    }  # fmt: skip
    layers = [shared[name] if name in shared else own[name]() for name in names]
    check(made(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), *layers, nn.Linear(3, 1))))


@pytest.fixture
def doubled() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *passed: 2 * passed[2])
    yield
    handle.remove()


@pytest.mark.usefixtures("doubled")
def test_global_hooks_are_seen() -> None:
    check(made(plain))


def test_wrong_rule_of_an_activation_is_found_by_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, torch.sigmoid, of_one_number(lambda v, order: [v.sigmoid()] * (order + 1)))
    net = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 1)).to(DTYPE)
    assert verify(lambda u, x: laplacian(u, x), net, draw(4, 2))["residual"] > 0.01


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh])
def test_second_derivatives_of_kinks_are_warned_of(kind: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(2, 4), kind(), nn.Linear(4, 1)).to(DTYPE)
    for call in (lambda: laplacian(net, X), lambda: partial(net, X, 0, 1)):
        with pytest.warns(UserWarning, match=f"second derivatives of {kind.__name__} are 0"):
            call()


@pytest.mark.parametrize(
    ("layer", "cause"),
    [(nn.Dropout(), "random numbers, as dropout"), (nn.BatchNorm1d(4), "changes a tensor of its own")],
)
def test_residuals_that_cannot_be_vectorised_are_refused_in_words(layer: nn.Module, cause: str) -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(0, (2, 4)), layer, nn.Flatten(0), nn.Linear(8, 1)).to(DTYPE)
    with pytest.raises(BatchError, match=f"cannot be vectorised.*{cause}"):
        natural_gradient(lambda u, x: u(x), net, draw(3, 2))


@pytest.mark.parametrize("call", [gradient, laplacian, taylor, lambda f, x: partial(f, x, 0, 1)])
def test_full_backward_hooks_are_refused_in_words(call: Callable[..., Any]) -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(DTYPE)
    net[1].register_full_backward_hook(lambda *passed: None)
    with pytest.raises(BatchError, match=r"\(\): f cannot be vectorised.*full backward hooks"):
        call(net, X)
    with pytest.raises(BatchError, match="function of 'residual' cannot be vectorised.*full backward hooks"):
        natural_gradient(lambda u, x: call(u, x), net, draw(3, 2))


def test_laplacian_of_dropout_takes_one_mask() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 1)).to(DTYPE)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        got = taylor(net, X)
        torch.manual_seed(1)
        expected = second(net)(X) + 1
        torch.manual_seed(1)
        value = net(X)
    torch.testing.assert_close(got.second.sum(), expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(got.value, value, rtol=EXACT, atol=EXACT)
