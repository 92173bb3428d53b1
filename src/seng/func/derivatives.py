"""Derivatives of a network at a point, quick under the engine's vectorised reverse passes.

All functions take a function f of one point x [d] and give its derivatives at that point: write the residual of one
sample with them. Chains of linear layers and activations, as physics-informed networks mostly are, go through in one
sweep that carries value, first and second derivatives along all directions at once; anything else by forward over
reverse mode. Forward over forward mode would be quicker, but torch has operations (layer_norm, linalg.solve) whose
second derivatives are silently wrong that way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap

from .trees import BoundModule

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
    along = torch.eye(len(x), dtype=x.dtype, device=x.device) if directions is None else directions
    layers = _chain(f)
    if layers is None:
        return _by_reverse_mode(f, x, along, sum_second)
    zero = x.new_zeros(1 if sum_second else len(along), len(x))
    return reduce(lambda point, layer: layer(point), layers, Taylor(x, along, zero))


def laplacian(f: Function, x: Float[Tensor, " d"]) -> Tensor:
    """Return the sum of second derivatives along all axes, of every output of f, [*out]. See ``taylor``."""
    return taylor(f, x, sum_second=True).second[0]


def gradient(f: Function, x: Float[Tensor, " d"]) -> Tensor:
    """Return first derivatives along all axes, [*out, d]. Cost: a reverse pass an output."""
    return jacrev(f)(x)  # pyright: ignore[reportReturnType]


def partial(f: Function, x: Float[Tensor, " d"], *axes: int) -> Tensor:
    """Return a mixed derivative, of the order of the number of axes: ``partial(f, x, 0, 0, 1)`` is f_xxy, [*out].

    Cost: a reverse pass an output for the first axis; each further one doubles it.
    """
    if not axes:
        return f(x)
    first, *others = axes
    of: Function = lambda y: gradient(f, y)[..., first]  # noqa: E731
    for axis in others:
        of = _along(of, torch.eye(len(x), dtype=x.dtype, device=x.device)[axis])
    return of(x)


def _along(f: Function, e: Tensor) -> Function:
    return lambda x: jvp(f, (x,), (e,))[1]


def _by_reverse_mode(f: Function, x: Tensor, along: Tensor, sum_second: bool) -> Taylor:
    slopes, bends = vmap(lambda e: jvp(lambda y: gradient(f, y), (x,), (e,))[:2])(along)
    first, second = (torch.einsum("k...d,kd->k...", t, along) for t in (slopes, bends))
    return Taylor(f(x), first, second.sum(0, keepdim=True) if sum_second else second)


# --- the sweep ------------------------------------------------------------------------------------------------------


def _chain(f: Function) -> list[Callable[[Taylor], Taylor]] | None:
    """Return f as a chain of rules, or None where it is something else."""
    module, given = (f.module, f.parameters) if isinstance(f, BoundModule) else (f, {})
    if not isinstance(module, nn.Sequential):
        return None
    rules = []
    for name, layer in module.named_children():
        if type(layer) is nn.Linear:
            own = {key: given.get(f"{name}.{key}", value) for key, value in layer.named_parameters()}
            rules.append(_linear(own["weight"], own.get("bias")))
        elif type(layer) in SMOOTH:
            rules.append(_elementwise(SMOOTH[type(layer)] or _by_forward_mode(layer)))
        else:
            return None
    return rules


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
        once = lambda y: jvp(layer, (y,), (ones,))  # noqa: E731
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
