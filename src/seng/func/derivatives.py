"""Derivatives of a network at a point, quick under the engine's vectorised reverse passes.

All functions take a function f of one point x [d] and give its derivatives at that point: write the residual of one
sample with them. Chains of linear layers and activations, as physics-informed networks mostly are, go through in one
sweep that carries value, first and second derivatives along all directions at once; anything else by reverse over
reverse mode, which is right where torch's forward mode is silently wrong in high order (linalg.solve, det) or fails
(norm). Layer, instance and batch normalisation are wrong in third order by either mode: they are spelled out.
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
from torch.func import grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import _has_any_global_hook

from ..errors import BatchError
from .plain import SpelledOut
from .terms import in_words
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

    Cost: sweep: (2 k + 1) forward passes in one, k + 2 where second derivatives are summed; else k reverse passes
    through a reverse pass, an output.
    Source: Li et al., "Forward Laplacian" (2023); Dangel et al., "Collapsing Taylor mode" (2025).
    """
    if isinstance(f, BoundModule):
        return with_parameters(f, lambda part: taylor(part, x, directions, sum_second=sum_second))
    _require_point("laplacian()" if sum_second else "taylor()", x, directions)
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
    return jacrev(_right(f, "gradient()"))(x)  # pyright: ignore[reportReturnType]


def partial(f: Function, x: Float[Tensor, " d"], *axes: int) -> Tensor:
    """Return a mixed derivative, of the order of the number of axes: ``partial(f, x, 0, 0, 1)`` is f_xxy, [*out].

    Cost: a reverse pass an output for the first axis; each further one doubles it.
    """
    _require_point("partial()", x)
    if len(axes) > 1:
        _warn_of_kinks(f)

    def derive(output: Output) -> Tensor:
        g: Function = lambda y: output(y)[0]  # noqa: E731
        for axis in axes:
            g = _component(grad(g), axis)
        return g(x)

    if not axes:
        return f(x)
    derivatives, shape = _by_output(f, x, derive, "partial()")
    return derivatives.reshape(shape)


@contextmanager
def nested_differentiation() -> Iterator[None]:
    """Let ``taylor`` and ``laplacian`` do without the sweep, so that it can be compared with."""
    token = _sweeping.set(False)
    try:
        yield
    finally:
        _sweeping.reset(token)


_sweeping = ContextVar("sweeping", default=True)


def _require_point(call: str, x: Tensor, directions: Tensor | None = None) -> None:
    fit = directions is None or (directions.dim() == 2 and directions.shape[1] == x.shape[-1])
    if x.dim() != 1 or not fit:
        raise BatchError(
            call, "not one point", expected="x [d], and directions [k, d]",
            got=[list(t.shape) for t in (x, directions) if t is not None], fix="Take many points by torch.func.vmap",
        )  # fmt: skip


def _component(f: Function, axis: int) -> Function:
    return lambda x: f(x)[axis]


def _right(f: Function, call: str) -> Function:
    """Return f in operations that are right in any order, and without its right to change the point in place."""

    def right(x: Tensor) -> Tensor:
        with in_words(call, "f"), SpelledOut(), sdpa_kernel(SDPBackend.MATH):
            return f(x.clone())

    return right


Output = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> one output of f, and all of them


def _by_output(f: Function, x: Tensor, derive: Callable[[Output], Any], call: str) -> tuple[Any, torch.Size]:
    """Return what ``derive`` makes of each output of f, stacked, and the shape of f(x)."""
    right = _right(f, call)
    with torch.random.fork_rng([x.device] if x.is_cuda else []):  # so that f draws as if it were called once
        like = right(x)

    def of_one(unit: Tensor) -> Any:
        def output(y: Tensor) -> tuple[Tensor, Tensor]:
            value = right(y)
            return (value * unit).sum(), value

        return derive(output)

    units = torch.eye(like.numel(), dtype=like.dtype, device=like.device).view(-1, *like.shape)
    return vmap(of_one, randomness="same")(units), like.shape


def _by_reverse_mode(f: Function, x: Tensor, along: Tensor, sum_second: bool) -> Taylor:
    """Differentiate reverse over reverse mode."""
    _warn_of_kinks(f)

    def derive(output: Output) -> tuple[Tensor, Tensor, Tensor]:
        def slopes(y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            slope, value = grad(output, has_aux=True)(y)
            first = along @ slope
            return first, (first, value)

        bends, (first, value) = jacrev(slopes, has_aux=True)(x)
        return value, first, (bends * along).sum(1)

    (value, first, second), shape = _by_output(f, x, derive, "laplacian()" if sum_second else "taylor()")
    first, second = first.mT.reshape(-1, *shape), second.mT.reshape(-1, *shape)
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
        once = lambda y: jvp(_right(layer, "taylor()"), (y,), (ones,))  # noqa: E731
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
