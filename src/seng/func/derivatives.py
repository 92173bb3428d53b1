"""Derivatives of a network at a point, quick under the engine's vectorised reverse passes.

All functions take a function f of one point x [d] and give its derivatives at that point: write the residual of one
sample with them. Where every operation of f has a rule in ``seng.func.rules``, f is evaluated once on truncated Taylor
series. Anything else is differentiated by reverse over reverse mode, which is right where torch's forward mode is
silently wrong in high order (linalg.solve, det) or fails (norm). Layer, instance and batch normalisation are wrong in
third order by either mode: they are spelled out.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import factorial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as hooks

from ..errors import BatchError, OptionError
from . import rules  # noqa: F401  (fills the table of rules)
from .jets import Jet, NoRuleError, Sweep
from .plain import SpelledOut
from .terms import in_words
from .trees import modules_of

Function = Callable[[Tensor], Tensor]
HIGHEST = 4  # order of ``taylor``
MANY = 16  # inputs, from which on a reverse pass gives a gradient sooner than a sweep


@dataclass(frozen=True)
class Taylor:
    """Value and derivatives of f at x along k directions.

    Args:
        value: f(x), [*out].
        first: First derivatives, [k, *out].
        second: Second derivatives along each direction, [k, *out]; their sum, [1, *out], where that was asked for.
        third: Third ones, [k, *out], where ``order`` is 3 or more.
        fourth: Fourth ones, [k, *out], where ``order`` is 4.
    """

    value: Tensor
    first: Tensor
    second: Tensor
    third: Tensor | None = None
    fourth: Tensor | None = None


def taylor(
    f: Function, x: Float[Tensor, " d"], directions: Float[Tensor, "k d"] | None = None, *, order: int = 2,
    sum_second: bool = False,
) -> Taylor:  # fmt: skip
    """Return f(x) and its pure derivatives along directions.

    Args:
        f: Function of a point.
        x: The point.
        directions: Directions; the axes where None.
        order: Highest order of the derivatives, 2 to 4.
        sum_second: Give the sum of the second derivatives only, which costs less for many directions.

    Raises:
        BatchError: x is not one point.
        OptionError: ``order`` is not 2, 3 or 4, or not 2 for a sum.

    Cost: in one sweep (order * k + 1) forward passes, k + 2 where second derivatives are summed; where an operation of
    f has no rule, k nested reverse passes for each output.
    Source: Griewank, Walther (2008), chapter 13; Li et al., "Forward Laplacian" (2023).
    """
    call = "laplacian()" if sum_second else "taylor()"
    _require_point(call, x, directions)
    if order not in range(2, (2 if sum_second else HIGHEST) + 1):
        raise OptionError(
            call, "order out of range", expected="2, 3 or 4; 2 for a sum", got=order, fix="Take others by partial()"
        )  # fmt: skip
    along = torch.eye(len(x), dtype=x.dtype, device=x.device) if directions is None else directions
    coefficients = _sweep(f, x, along, order, sum_second)
    if coefficients is None:
        return _by_reverse_mode(f, x, along, order, sum_second, call)
    value, *parts = coefficients
    return Taylor(value[0], *(part if n < 2 else part * factorial(n) for n, part in enumerate(parts, 1)))


def laplacian(f: Function, x: Float[Tensor, " d"]) -> Tensor:
    """Return the sum of second derivatives along all axes, of every output of f, [*out]. See ``taylor``."""
    return taylor(f, x, sum_second=True).second[0]


def gradient(f: Function, x: Float[Tensor, " d"]) -> Tensor:
    """Return first derivatives along all axes, [*out, d]. Cost: d + 1 forward passes, or a reverse pass an output."""
    if x.dim() == 1 and (len(x) <= MANY or isinstance(x, Jet)):
        coefficients = _sweep(f, x, torch.eye(len(x), dtype=x.dtype, device=x.device), 1)
        if coefficients is not None:
            return coefficients[1].movedim(0, -1)
    return jacrev(_right(f, "gradient()"))(x)  # pyright: ignore[reportReturnType]


def partial(f: Function, x: Float[Tensor, " d"], *axes: int) -> Tensor:
    """Return a mixed derivative, of the order of the number of axes: ``partial(f, x, 0, 0, 1)`` is f_xxy, [*out].

    Cost: forward passes: the product of (order + 1) over the axes; where an operation of f has no rule, a reverse pass
    for each output and the first axis, and each further one doubles it.
    """
    _require_point("partial()", x)
    orders = Counter(range(len(x))[axis] for axis in axes)
    swept = _mixed(f, x, sorted(orders.items()))
    return _partial_by_reverse_mode(f, x, axes) if swept is None else swept


def _mixed(f: Function, x: Tensor, orders: list[tuple[int, int]]) -> Tensor | None:
    """Return the mixed derivative by sweeps within sweeps, one an axis, or None where an operation has no rule."""
    if not orders:
        return f(x)
    (axis, order), *rest = orders

    def within(y: Tensor) -> Tensor:
        derivative = _mixed(f, y, rest)
        if derivative is None:
            raise NoRuleError("a derivative within")
        return derivative

    direction = torch.zeros(1, len(x), dtype=x.dtype, device=x.device)
    direction[0, axis] = 1
    coefficients = _sweep(within, x, direction, order, modules=modules_of(f))
    return None if coefficients is None else coefficients[-1][0] * factorial(order)


@contextmanager
def nested_differentiation() -> Iterator[None]:
    """Differentiate without sweeps, so that these can be compared with it."""
    token = _sweeping.set(False)
    try:
        yield
    finally:
        _sweeping.reset(token)


_sweeping = ContextVar("sweeping", default=True)


def _sweep(
    f: Function, x: Tensor, along: Tensor, order: int, collapsed: bool = False, modules: list[nn.Module] | None = None
) -> list[Tensor] | None:
    """Return Taylor coefficients of f by order, or None where f has to be differentiated in another way."""
    if isinstance(x, Jet) and not _sweeping.get():
        raise x.sweep.refuse("nested differentiation")
    if not _sweeping.get() or _has_backward_hooks(modules_of(f) if modules is None else modules):
        return None
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.device.type == "cuda" else [])]
    try:
        return Sweep(order, len(along), collapsed).run(f, x, along)
    except Exception:  # of whatever kind: f then raises it again
        if isinstance(x, Jet):
            raise
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state(states[1], x.device)
        return None


def _has_backward_hooks(modules: list[nn.Module]) -> bool:
    """Whether a hook may change derivatives, which a sweep would not see."""
    if hooks._global_backward_hooks or hooks._global_backward_pre_hooks:
        return True
    return any(module._backward_hooks or module._backward_pre_hooks for module in modules)


def _require_point(call: str, x: Tensor, directions: Tensor | None = None) -> None:
    fit = directions is None or (directions.dim() == 2 and directions.shape[1] == x.shape[-1])
    if x.dim() != 1 or not fit:
        raise BatchError(
            call, "not one point", expected="x [d], and directions [k, d]",
            got=[list(t.shape) for t in (x, directions) if t is not None], fix="Take many points by torch.func.vmap",
        )  # fmt: skip


# --- nested reverse mode ----------------------------------------------------------------------------------------------


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


def _by_reverse_mode(f: Function, x: Tensor, along: Tensor, order: int, sum_second: bool, call: str) -> Taylor:
    """Differentiate along each direction, reverse over reverse mode."""
    _warn_of_kinks(f)

    def derive(output: Output) -> tuple[Tensor, tuple[Tensor, ...]]:
        def slopes(y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            slope, value = grad(output, has_aux=True)(y)
            first = along @ slope
            return first, (first, value)

        bends, (first, value) = jacrev(slopes, has_aux=True)(x)
        higher = [vmap(lambda v, n=n: _along(output, x, v, n), randomness="same")(along) for n in range(3, order + 1)]
        return value, (first, (bends * along).sum(1), *higher)

    (value, parts), shape = _by_output(f, x, derive, call)
    first, second, *higher = (part.mT.reshape(-1, *shape) for part in parts)
    return Taylor(value[0], first, second.sum(0, keepdim=True) if sum_second else second, *higher)


def _along(output: Output, x: Tensor, v: Tensor, order: int) -> Tensor:
    """Return the derivative of an order along a direction."""
    g: Callable[[Tensor], Tensor] = lambda t: output(x + t * v)[0]  # noqa: E731
    for _ in range(order):
        g = grad(g)
    return g(x.new_zeros(()))


def _partial_by_reverse_mode(f: Function, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if len(axes) > 1:
        _warn_of_kinks(f)

    def derive(output: Output) -> Tensor:
        g: Function = lambda y: output(y)[0]  # noqa: E731
        for axis in axes:
            g = _component(grad(g), axis)
        return g(x)

    derivatives, shape = _by_output(f, x, derive, "partial()")
    return derivatives.reshape(shape)


def _warn_of_kinks(f: Function) -> None:
    """Warn of activations that have no second derivative."""
    kinds = sorted({type(module).__name__ for module in modules_of(f) if isinstance(module, PIECEWISE_LINEAR)})
    if kinds:
        text = f"second derivatives of {', '.join(kinds)} are 0: use smooth activations, such as Tanh, in their place"
        warnings.warn(text, stacklevel=4)


PIECEWISE_LINEAR = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold,
)  # fmt: skip
