"""Truncated Taylor series along directions, in the place of tensors: forward derivatives of any order in one sweep.

Canonical shape. A jet of a tensor y [*s] that depends on a point x has the coefficients of y(x + t v), for k directions
v and up to t^K, in one tensor [1 + m, *s]: the value, k coefficients of each order below K, and k of order K, or their
sum alone where the sweep is collapsed. Derivatives are the coefficients times factorials.

A jet is no tensor, so that nothing can read its value and lose its derivatives: an operation without a rule, a
C++ extension, a compiled function or ``.item()`` raise, and the caller differentiates in another way. Coefficients
may be jets of another sweep, which gives mixed derivatives.

Source: Griewank, Walther, "Evaluating Derivatives" (2008), chapter 13; Dangel et al., "Collapsing Taylor mode" (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map

from .series import Series

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}  # function of torch -> (sweep, function, *args, **kwargs) -> result
LEVELS = count()


class NoRuleError(Exception):
    """An operation cannot be done on jets."""


class Sweep:
    """One evaluation of a function on jets.

    Args:
        order: K >= 1.
        directions: k.
        collapsed: Whether coefficients of order K are summed over directions.

    Attributes:
        level: Sweeps within others have larger ones.
        failed: Whether an operation was refused, even if the function caught the error.
    """

    def __init__(self, order: int, directions: int, collapsed: bool = False):
        self.order, self.level, self.failed = order, next(LEVELS), False
        self.sizes = [1, *[directions] * (order - 1), 1 if collapsed else directions]

    def run(self, f: Callable[[Any], Any], x: Any, directions: Float[Tensor, "k d"]) -> list[Any]:
        """Return the coefficients of f at x by order, [k, *out] each.

        Raises:
            NoRuleError: An operation of f has no rule, or f does not depend on x.
        """
        # Within autograd functions and no_grad, where derivatives are not those of the operations, gradients are off.
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            y = f(Jet(torch.cat([x[None], directions, directions.new_zeros(sum(self.sizes[2:]), len(x))]), self))
            if self.failed or not isinstance(y, Jet) or y.sweep is not self:
                raise NoRuleError("an operation without a rule, or no dependence on the point")
            orders = y.orders()
        return [x if recording or isinstance(x, Jet) else x.detach() for x in orders]

    def refuse(self, what: object) -> NoRuleError:
        """Return the error to raise."""
        self.failed = True
        return NoRuleError(f"no rule for {what}")

    def jet(self, value: Any) -> Any:
        """Return a constant, or a jet of this sweep, as a jet."""
        if isinstance(value, Jet) and value.sweep is self:
            return value
        return Jet(torch.cat([value[None], value.new_zeros(sum(self.sizes) - 1, *value.shape)]), self)  # pyright: ignore

    def product(self, a: Sequence[Any], b: Sequence[Any], times: Callable[[Any, Any], Any] = torch.mul) -> list[Any]:
        """Return the coefficients from order 1 on of a product of two series without constant terms.

        Entries are coefficients by order, from 1 on, or None for 0.
        """
        out: list[Any] = [None] * self.order
        for i, x in enumerate(a):
            for j, y in enumerate(b[: self.order - 1 - i]):
                if x is None or y is None:
                    continue
                part, n = times(x, y), i + j + 1
                if n == self.order - 1 and self.sizes[-1] != self.sizes[1]:
                    part = part.sum(0, keepdim=True)
                out[n] = part if out[n] is None else out[n] + part
        return out

    def compose(self, jet: Any, series: Series) -> Any:
        """Return phi(jet) for a function phi of one number, from its Taylor coefficients."""
        value, *parts = jet.orders()
        taylor = series(value[0], self.order)
        out, power = [taylor[1] * part for part in parts], parts
        for j in range(2, self.order + 1):
            power = self.product(power, parts)
            out = [x if y is None else x + taylor[j] * y for x, y in zip(out, power, strict=True)]
        return Jet([taylor[0][None], *out], self)

    def admit(self, jets: list[Jet], func: object, kwargs: dict[str, Any]) -> None:
        """Refuse what would be wrong: gradients that are off, jets changed in place, results written elsewhere."""
        if not torch.is_grad_enabled() or kwargs.get("out") is not None or any(jet.alias[0] for jet in jets):
            raise self.refuse(func)


class Jet:
    """A tensor with its Taylor coefficients. See the module.

    Args:
        coefficients: [1 + m, *shape], a tensor or a jet of another sweep; or those of each order in a list.
        sweep: The evaluation that it belongs to.
        alias: Shared by all that may be views of one tensor: a list whose entry becomes True where that was changed.
    """

    __slots__ = ("_coefficients", "alias", "sweep")

    def __init__(self, coefficients: Any, sweep: Sweep, alias: list[bool] | None = None):
        self._coefficients, self.sweep, self.alias = coefficients, sweep, [False] if alias is None else alias

    @property
    def coefficients(self) -> Any:
        """All coefficients in one tensor, [1 + m, *shape]."""
        if isinstance(self._coefficients, list):
            self._coefficients = torch.cat(self._coefficients)
        return self._coefficients

    def orders(self) -> Sequence[Any]:
        """Return the coefficients by order: the value [1, *shape] first."""
        held = self._coefficients
        return held if isinstance(held, list) else held.split(self.sweep.sizes)

    @property
    def value(self) -> Any:
        """The tensor itself."""
        return self._any[0]

    @property
    def _any(self) -> Any:
        held = self._coefficients
        return held[0] if isinstance(held, list) else held

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self._any.shape[1:]

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return self._any.ndim - 1

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self._any.dtype

    @property
    def device(self) -> torch.device:
        """Its device."""
        return self._any.device

    @property
    def mT(self) -> Any:
        """The tensor with its last two dimensions swapped."""
        return apply(Tensor.transpose, (self, -1, -2), {})

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.ndim

    def numel(self) -> int:
        """Return the number of elements."""
        return self.shape.numel()

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one of its lengths."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter(apply(Tensor.unbind, (self,), {}))

    def __bool__(self) -> bool:
        raise self.sweep.refuse("bool")

    def __getattr__(self, name: str) -> Any:
        func = getattr(Tensor, name, None)
        if callable(func) and func in RULES:
            return lambda *args, **kwargs: apply(func, (self, *args), kwargs)
        raise self.sweep.refuse(name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(func, args, kwargs or {})


def apply(func: Any, args: Any, kwargs: Any) -> Any:
    """Call a function of torch with jets among its arguments."""
    found = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Jet)]
    sweep = max((jet.sweep for jet in found), key=lambda sweep: sweep.level)
    own = [jet for jet in found if jet.sweep is sweep]
    sweep.admit(own, func, kwargs)
    if func not in RULES:
        raise sweep.refuse(func)
    try:
        return RULES[func](sweep, func, *args, **kwargs)
    except Exception:
        sweep.failed = True
        raise


def each(func: Callable[..., Any], coefficients: Sequence[Any]) -> Any:
    """Return func of each coefficient: it is linear in all of its arguments together."""
    outer = [x.sweep for x in coefficients if isinstance(x, Jet)]
    if not outer:
        return vmap(func)(*coefficients)
    sweep = max(outer, key=lambda sweep: sweep.level)
    inner = [sweep.jet(x).coefficients for x in coefficients]
    return tree_map(lambda x: Jet(x, sweep), each(lambda *x: each(func, x), inner))
