"""Derivatives of a network at a point, quick under the engine's vectorised reverse passes.

All functions take a function f of one point x [d] and give its derivatives at that point: write the residual of one
sample with them. Chains of linear layers and activations, as physics-informed networks mostly are, go through in one
sweep that carries value, first and second derivatives along all directions at once; anything else by forward over
reverse mode. Forward over forward mode would be quicker, but torch has operations (layer_norm, linalg.solve) whose
second derivatives are silently wrong that way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap
from torch.nn.modules.module import _has_any_global_hook

from .trees import BoundModule, with_parameters

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Taylor:
    """Value and derivatives of f at x along k directions.

    Args:
        value: f(x), [*out].
        first: First derivatives, [k, *out].
        second: Second derivatives along each direction, [k, *out]; their sum, [1, *out], where that was asked for.
    """

    value: Tensor
    first: Tensor
    second: Tensor


def taylor(
    f: Function, x: Float[Tensor, " d"], directions: Float[Tensor, "k d"] | None = None, *, sum_second: bool = False
) -> Taylor:
    """Return f(x), its first and its pure second derivatives along directions.

    Args:
        f: Function of a point; a module that is a Sequential of linear layers and activations is swept through.
        x: The point.
        directions: Directions; the axes where None.
        sum_second: Give the sum of the second derivatives only, which costs less for many directions.

    Cost: sweep: (2 k + 1) forward passes in one, k + 2 where second derivatives are summed; else k passes forward over
    reverse mode, an output.
    Source: Li et al., "Forward Laplacian" (2023); Dangel et al., "Collapsing Taylor mode" (2025).
    """
    if isinstance(f, BoundModule):
        return with_parameters(f, lambda part: taylor(part, x, directions, sum_second=sum_second))
    along = torch.eye(len(x), dtype=x.dtype, device=x.device) if directions is None else directions
    layers = _chain(f) if _sweeping.get() else None
    if layers is None:
        return _by_reverse_mode(f, x, along, sum_second)
    zero = x.new_zeros(1 if sum_second else len(along), len(x))
    return reduce(lambda point, layer: layer(point), layers, Taylor(x, along, zero))


def laplacian(f: Function, x: Float[Tensor, " d"]) -> Tensor:
    """Return the sum of second derivatives along all axes, of every output of f, [*out]. See ``taylor``."""
    return taylor(f, x, sum_second=True).second[0]


def gradient(f: Function, x: Float[Tensor, " d"]) -> Tensor:
    """Return first derivatives along all axes, [*out, d]. Cost: a reverse pass an output."""
    return jacrev(_on_a_copy(f))(x)  # pyright: ignore[reportReturnType]


def partial(f: Function, x: Float[Tensor, " d"], *axes: int) -> Tensor:
    """Return a mixed derivative, of the order of the number of axes: ``partial(f, x, 0, 0, 1)`` is f_xxy, [*out].

    Cost: a reverse pass an output for the first axis; each further one doubles it.
    """
    if not axes:
        return f(x)
    first, *others = axes
    if others:
        _warn_of_kinks(f)
    of: Function = lambda y: gradient(f, y)[..., first]  # noqa: E731
    for axis in others:
        of = _along(of, torch.eye(len(x), dtype=x.dtype, device=x.device)[axis])
    return of(x)


@contextmanager
def nested_differentiation() -> Iterator[None]:
    """Let ``taylor`` and ``laplacian`` do without the sweep, so that it can be compared with."""
    token = _sweeping.set(False)
    try:
        yield
    finally:
        _sweeping.reset(token)


_sweeping = ContextVar("sweeping", default=True)


def _along(f: Function, e: Tensor) -> Function:
    return lambda x: jvp(f, (x,), (e,))[1]


def _on_a_copy(f: Function) -> Function:
    """Return f without its right to change the point in place, as a first layer may."""
    return lambda x: f(x.clone())


def _by_reverse_mode(f: Function, x: Tensor, along: Tensor, sum_second: bool) -> Taylor:
    """Differentiate forward over reverse mode, from a single call of f: what it draws at random is drawn once."""
    _warn_of_kinks(f)

    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        value = f(x.clone())
        return value, value

    # batched like x, e can be changed in place, as activations may
    of = lambda x, e: jvp(jacrev(twice, has_aux=True), (x,), (e + torch.zeros_like(x),))[:2]  # noqa: E731
    (_, value), (bends, first) = vmap(of, randomness="same")(x.expand(len(along), -1), along)
    second = torch.einsum("k...d,kd->k...", bends, along)
    return Taylor(value[0], first, second.sum(0, keepdim=True) if sum_second else second)


def _warn_of_kinks(f: Function) -> None:
    """Warn of activations that have no second derivative."""
    modules = with_parameters(f, lambda part: [*part.modules()]) if isinstance(f, BoundModule) else ()
    modules = [*f.modules()] if isinstance(f, nn.Module) else modules
    kinds = sorted({type(module).__name__ for module in modules if isinstance(module, PIECEWISE_LINEAR)})
    if kinds:
        text = f"second derivatives of {', '.join(kinds)} are 0: use smooth activations, such as Tanh, in their place"
        warnings.warn(text, stacklevel=4)


PIECEWISE_LINEAR = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold,
)  # fmt: skip


# --- the sweep ------------------------------------------------------------------------------------------------------


def _chain(f: Any) -> list[Callable[[Taylor], Taylor]] | None:
    """Return f as a chain of rules, or None where it may compute anything else."""
    if not _computes_what_its_class_says(f):
        return None
    if type(f) is nn.Linear:
        return [_linear(f.weight, f.bias)]
    if type(f) in SMOOTH:
        rule = SMOOTH[type(f)]
        if rule is not None and any(True for _ in f.parameters()):
            return None
        return [_elementwise(rule or _by_forward_mode(f))]
    if type(f) is not nn.Sequential:
        return None
    parts = [_chain(part) for part in f]
    return None if None in parts else [rule for part in parts for rule in part or []]


def _computes_what_its_class_says(module: Any) -> bool:
    """Whether no hook and no method replaced on the instance can change what a module computes."""
    if not isinstance(module, nn.Module) or _has_any_global_hook():
        return False
    kind = type(module)
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    replaced = any(callable(getattr(kind, name, None)) for name in vars(module))
    return not any(hooks) and not replaced and kind.forward is FORWARDS.get(kind, kind.forward)


FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Sequential, nn.Linear, nn.Tanh)
}  # as torch has them


def _linear(weight: Tensor, bias: Tensor | None) -> Callable[[Taylor], Taylor]:
    def rule(point: Taylor) -> Taylor:
        parts = [point.value[None], point.first, point.second]
        value, first, second = (torch.cat(parts) @ weight.mT).split([len(part) for part in parts])
        return Taylor(value[0] if bias is None else value[0] + bias, first, second)

    return rule


Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _elementwise(derivatives: Derivatives) -> Callable[[Taylor], Taylor]:
    def rule(point: Taylor) -> Taylor:
        value, slope, bend = derivatives(point.value)
        squares = point.first.square()
        if len(point.second) != len(squares):
            squares = squares.sum(0, keepdim=True)
        return Taylor(value, slope * point.first, slope * point.second + bend * squares)

    return rule


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = z.tanh()
    slope = 1 - y * y
    return y, slope, -2 * y * slope


def _by_forward_mode(layer: nn.Module) -> Derivatives:
    def derivatives(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ones = torch.ones_like(z)
        once = lambda y: jvp(_on_a_copy(layer), (y,), (ones,))  # noqa: E731
        (value, slope), (_, bend) = jvp(once, (z,), (ones,))[:2]
        return value, slope, bend

    return derivatives


SMOOTH: dict[type[nn.Module], Derivatives | None] = {  # None: by forward mode
    nn.Tanh: _tanh,
    nn.Sigmoid: None,
    nn.SiLU: None,
    nn.GELU: None,
    nn.Softplus: None,
    nn.Mish: None,
    nn.ELU: None,
    nn.Identity: None,
}
