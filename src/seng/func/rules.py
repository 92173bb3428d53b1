"""What operations of torch do to jets. Adding one is a line in a table."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .jets import RULES, Jet, NoRuleError, Rule, Sweep, apply, each
from .plain import layer_norm
from .series import SERIES, Series, gelu


def of_one_number(series: Series) -> Rule:
    """Return the rule of a function of one number, applied to each."""

    def rule(sweep: Sweep, func: Any, x: Jet, *args: Any, inplace: bool = False, **kwargs: Any) -> Jet:
        out = sweep.compose(x, lambda v, order: series(v, order, *args, **kwargs))
        x.alias[0] |= inplace
        return out

    return rule


# --- operations that are linear in each argument, or in all together --------------------------------------------------


def linear(sweep: Sweep, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Linear in all tensors together: of each coefficient. Constants have a value alone."""
    leaves, structure = tree_flatten((args, kwargs))
    at = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Jet | Tensor)]
    jets = [leaves[k] for k in at if isinstance(leaves[k], Jet)]

    def of(*coefficients: Any) -> Any:
        filled = list(leaves)
        for k, x in zip(at, coefficients, strict=True):
            filled[k] = x
        args, kwargs = tree_unflatten(filled, structure)
        return func(*args, **kwargs)

    out = each(of, [sweep.jet(leaves[k]).coefficients for k in at])
    alias = jets[0].alias if len(jets) == 1 else None
    return tree_map(lambda x: Jet(x, sweep, alias), out)


def structural(sweep: Sweep, func: Any, x: Jet, *args: Any, **kwargs: Any) -> Any:
    """Linear in its first argument, the others being shapes, dimensions and indices."""
    if not isinstance(x, Jet) or any(isinstance(leaf, Jet) for leaf in tree_flatten((args, kwargs))[0]):
        raise sweep.refuse(func)
    out = each(lambda c: func(c, *args, **kwargs), [x.coefficients])
    return tree_map(lambda y: Jet(y, sweep, x.alias), out)


def _index(sweep: Sweep, func: Any, x: Jet, key: Any) -> Jet:
    simple = key if isinstance(key, tuple) else (key,)
    if isinstance(x, Jet) and all(isinstance(k, int | slice | type(None) | type(...)) for k in simple):
        return Jet(x.coefficients[(slice(None), *simple)], sweep, x.alias)
    return structural(sweep, func, x, key)


def _paired(func: Any) -> Callable[[Any, Any], Any]:
    """Return a function of two arguments over the pairs of their coefficients; one coefficient goes with all."""

    def run(x: Any, y: Any) -> Any:
        outer = [z.sweep for z in (x, y) if isinstance(z, Jet)]
        if outer:
            return multilinear(max(outer, key=lambda sweep: sweep.level), run, x, y)
        alone = [len(z) == 1 < max(len(x), len(y)) for z in (x, y)]
        parts = [z[0] if single else z for z, single in zip((x, y), alone, strict=True)]
        return vmap(func, tuple(None if single else 0 for single in alone))(*parts)

    return run


def multilinear(sweep: Sweep, func: Any, *args: Any, elementwise: bool = False, **kwargs: Any) -> Jet:
    """Linear in each of its tensors, of which at most two depend on the point."""
    leaves, structure = tree_flatten((args, kwargs))
    at = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Jet) and leaf.sweep is sweep]

    def of(*jets: Any) -> Any:
        filled = list(leaves)
        for k, x in zip(at, jets, strict=True):
            filled[k] = x
        args, kwargs = tree_unflatten(filled, structure)
        return func(*args, **kwargs)

    jets = [leaves[k] for k in at]
    aligned = elementwise and all(getattr(leaf, "ndim", 0) <= jets[0].ndim for leaf in leaves)
    if len(jets) == 1:
        return Jet(of(jets[0].coefficients) if aligned else each(of, [jets[0].coefficients]), sweep)
    if len(jets) > 2:
        raise sweep.refuse(func)
    times = of if elementwise and jets[0].ndim == jets[1].ndim else _paired(of)
    (a, *left), (b, *right) = (jet.orders() for jet in jets)
    sums = sweep.product(left, right, times)
    for n, (x, y) in enumerate(zip(left, right, strict=True)):
        both = times(x, b) + times(a, y)
        sums[n] = both if sums[n] is None else sums[n] + both
    return Jet([times(a, b), *sums], sweep)


def _multiply(sweep: Sweep, func: Any, x: Any, y: Any) -> Jet:
    return multilinear(sweep, torch.mul, x, y, elementwise=True)


def _divide(sweep: Sweep, func: Any, x: Any, y: Any) -> Jet:
    if isinstance(y, Jet):
        return x * y.reciprocal()
    return multilinear(sweep, torch.div, x, y, elementwise=True)


def _add(sweep: Sweep, func: Any, x: Any, y: Any, *, alpha: float = 1) -> Any:
    return _sum(sweep, x, y if alpha == 1 else alpha * y)


def _subtract(sweep: Sweep, func: Any, x: Any, y: Any, *, alpha: float = 1) -> Jet:
    return _sum(sweep, x, -y if alpha == 1 else -alpha * y)


def _sum(sweep: Sweep, x: Any, y: Any) -> Jet:
    own = [z for z in (x, y) if isinstance(z, Jet) and z.sweep is sweep]
    if len(own) == 2:
        if x.ndim != y.ndim:
            return linear(sweep, torch.add, x, y)
        return Jet([a + b for a, b in zip(x.orders(), y.orders(), strict=True)], sweep)
    (jet,), other = own, y if own[0] is x else x
    first, *rest = jet.orders()
    value = first + other if getattr(other, "ndim", 0) <= jet.ndim else (first[0] + other)[None]
    if value.shape[1:] != jet.shape or value.dtype != jet.dtype:
        return linear(sweep, torch.add, jet, other)
    return Jet([value, *rest], sweep)


def affine(sweep: Sweep, func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer."""
    if isinstance(weight, Jet) or isinstance(bias, Jet):
        out: Any = multilinear(sweep, F.linear, x, weight)
        return out if bias is None else out + bias
    out = Jet(F.linear(x.coefficients, weight), sweep)
    return out if bias is None else out + bias


def _concatenate(sweep: Sweep, func: Any, tensors: Any, *args: Any, **kwargs: Any) -> Jet:
    return linear(sweep, func, tensors, *args, **kwargs)


def _choose(sweep: Sweep, func: Any, condition: Any, x: Any, y: Any) -> Jet:
    if isinstance(condition, Jet):
        raise sweep.refuse(func)
    fixed = [torch.as_tensor(z) if isinstance(z, int | float) else z for z in (x, y)]
    return linear(sweep, lambda a, b: torch.where(condition, a, b), *fixed)


def _in_place(func: Any) -> Rule:
    def rule(sweep: Sweep, _: Any, x: Jet, other: Any) -> Jet:
        if not isinstance(x, Jet) or x.sweep is not sweep:
            raise sweep.refuse(func)
        out: Any = apply(func, (x, other), {})
        if out.shape != x.shape or out.dtype != x.dtype:
            raise sweep.refuse(func)
        x.alias[0] = True
        return out

    return rule


def _operator(func: Any) -> Callable[..., Any]:
    return lambda self, *args: apply(func, (self, *args), {})


def _of_value(sweep: Sweep, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Piecewise constant."""
    return func(*(x.value if isinstance(x, Jet) and x.sweep is sweep else x for x in args), **kwargs)


# --- compositions ---------------------------------------------------------------------------------------------------


def _composed(formula: Callable[..., Any]) -> Rule:
    def rule(sweep: Sweep, func: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
        if inplace:
            raise sweep.refuse(func)
        return formula(*args, **kwargs)

    return rule


def _softmax(x: Any, dim: int, _stacklevel: Any = 3, dtype: torch.dtype | None = None) -> Any:
    if dtype is not None or isinstance(_stacklevel, torch.dtype):
        raise NoRuleError("softmax in another dtype")
    e = (x - _detached(x).amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return x.sweep.compose(x, gelu)
    return x * (1 + ((x + 0.044715 * x**3) * math.sqrt(2 / math.pi)).tanh()) / 2


def _prod(x: Any, dim: int | None = None) -> Any:
    parts = x.reshape(-1).unbind() if dim is None else x.unbind(dim)
    if not 0 < len(parts) <= 16:
        raise NoRuleError("a product of many")
    return reduce(operator.mul, parts)


def _detached(x: Any) -> Any:
    while isinstance(x, Jet):
        x = x.value
    return x.detach()


COMPOSED: dict[str, Callable[..., Any]] = {
    "mish": lambda x: x * F.softplus(x).tanh(),
    "tan": lambda x: x.sin() / x.cos(),
    "softsign": lambda x: x / (1 + x * _detached(x).sign()),
    "tanhshrink": lambda x: x - x.tanh(),
    "softmax": _softmax,
    "gelu": _gelu,
    "prod": _prod,
    "layer_norm": layer_norm,
}
MULTILINEAR = "matmul __matmul__ __rmatmul__ mm bmm mv dot inner outer einsum tensordot cross linalg_cross"
STRUCTURAL = (
    "reshape view flatten unflatten squeeze unsqueeze transpose permute movedim swapaxes t expand broadcast_to repeat "
    "tile select narrow split chunk unbind sum mean flip roll diagonal diag diag_embed tril triu clone contiguous "
    "cumsum neg __neg__ trace double float to ravel"
)
JOINED = "cat concat concatenate stack hstack vstack dstack column_stack"
VALUES = (
    "__gt__ __lt__ __ge__ __le__ __eq__ __ne__ gt lt ge le eq ne zeros_like ones_like full_like new_zeros new_ones "
    "new_full new_tensor is_floating_point is_complex"
)
NAMED: dict[str, Rule] = {
    **{name: of_one_number(series) for name, series in SERIES.items()},
    **{name: _composed(formula) for name, formula in COMPOSED.items()},
    **dict.fromkeys(MULTILINEAR.split(), multilinear),
    **dict.fromkeys(STRUCTURAL.split(), structural),
    **dict.fromkeys(JOINED.split(), _concatenate),
    **dict.fromkeys(VALUES.split(), _of_value),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _multiply),
    **dict.fromkeys(("add", "__add__", "__radd__"), _add),
    **dict.fromkeys(("sub", "subtract", "__sub__"), _subtract),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _divide),
    "__rsub__": lambda sweep, func, x, y: y + (-x),
    "rsub": lambda sweep, func, x, y: y + (-x),
    "__rtruediv__": lambda sweep, func, x, y: y * x.reciprocal(),
    "__rpow__": lambda sweep, func, x, y: (x * math.log(y)).exp(),
    "__getitem__": _index,
    "linear": affine,
    "where": _choose,
    "__iadd__": _in_place(Tensor.__add__),
    "__isub__": _in_place(Tensor.__sub__),
    "__imul__": _in_place(Tensor.__mul__),
    "__itruediv__": _in_place(Tensor.__truediv__),
}


def _register() -> None:
    for name, rule in NAMED.items():
        for place in (torch, Tensor, F, torch.special, torch.linalg):
            if hasattr(place, name) and (place, name) != (Tensor, "where"):  # whose arguments have another order
                RULES[getattr(place, name)] = rule
        if name.startswith("__"):
            setattr(Jet, name, _operator(getattr(Tensor, name)))


_register()
