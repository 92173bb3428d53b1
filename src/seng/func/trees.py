"""Parameters and batches as trees of tensors; a module as a function of its parameters.

A tree is a tensor, or nested dicts, lists and tuples of tensors. Parameters become a ``Params``: a tuple of leaves,
and ``bind``, which gives the residual function its first argument back.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from functools import partial, reduce
from types import FunctionType, MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map, tree_unflatten

from ..errors import BatchError, OptionError
from .bounds import Bounds, Leaves
from .plain import NORMALISATIONS

HIDDEN = "Of lists and dicts, nn.ParameterList and nn.ParameterDict show theirs, plain ones do not"


class BoundModule:
    """A module with these parameters: what residual functions get as ``net`` where a module was given.

    Calls, attributes, items, methods and properties are the module's own, with the parameters in their places; parts of
    it come bound to the same parameters. What a method sets on the module stays there.

    Args:
        module: The module; buffers and frozen parameters are its own.
        parameters: Values of its trainable parameters, by qualified name.
        part: The module or a part of it; the module where None.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor], part: Any = None):
        self.__module, self.__parameters = module, parameters
        self.__part: Any = module if part is None else part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__bound(self.__part, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols of Python, such as copying
            raise AttributeError(name)
        return self.__bound(getattr, self.__part, name)

    def __getitem__(self, key: Any) -> Any:
        return self.__bound(operator.getitem, self.__part, key)

    def __contains__(self, key: Any) -> bool:
        return key in self.__part

    def __len__(self) -> int:
        return len(self.__part)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__bound(iter, self.__part))

    def __bool__(self) -> bool:
        return bool(self.__part)

    def get_parameter(self, target: str) -> Any:
        """Return a parameter by its qualified name."""
        return reduce(getattr, target.split("."), self)

    def __bound(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function with the parameters in their places; bind what it gives."""
        lazy = []

        def call() -> Any:
            value = fn(*args, **kwargs)
            lazy.append(isinstance(value, Iterator))
            read = isinstance(value, Iterator | KeysView | ValuesView | ItemsView)  # later, other values would be there
            return list(value) if read else value

        value = tree_map(self.__bind, with_parameters(self, lambda part: call()))
        return iter(value) if lazy[0] else value

    def __bind(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return BoundModule(self.__module, self.__parameters, value)
        if isinstance(value, MethodType | FunctionType | partial):
            return partial(self.__bound, value)
        own = any(value is p for p in self.__parameters.values())  # as they are where a loss is all that is asked for
        if isinstance(value, nn.Parameter) and value.requires_grad and not own:
            raise OptionError(
                "residual_fn()", "a parameter is read that is constant here",
                expected="parameters that the module has as its own", got=list(value.shape),
                fix=f"Keep it as an attribute. {HIDDEN}",
            )  # fmt: skip
        return value

    def _part(self) -> Any:
        return self.__part

    def _with_parameters(self, fn: Callable[[Any], Any]) -> Any:
        named = {f"module.{name}": value for name, value in self.__parameters.items()}
        return functional_call(_Scope(self.__module), named, (lambda: fn(self.__part),))


def modules_of(f: Any) -> list[nn.Module]:
    """Return the modules that a module, or a part of one, is known to call."""
    f = f._part() if isinstance(f, BoundModule) else f
    return [*f.modules()] if isinstance(f, nn.Module) else []


def with_parameters(bound: BoundModule, fn: Callable[[Any], Any]) -> Any:
    """Return fn of the module, or of the part, while the bound parameters are in their places."""
    return bound._with_parameters(fn)


class _Scope(nn.Module):
    """Holds a module for ``functional_call``; calling it runs a function, and no hook."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def __call__(self, fn: Callable[[], Any]) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return fn()


@dataclass(frozen=True)
class Params:
    """Parameters taken apart.

    Args:
        leaves: The tensors themselves, not copies: an accepted step writes into them.
        names: A name for each leaf, for messages and states.
        bind: Leaves to the first argument of the residual function.
        restore: Leaves to the caller's structure; a module's are a dict by name.
        normalises: Whether a module among them has derivatives that torch gets wrong in third order.
        bounds: Bounds that they stay within, or None.
    """

    leaves: Leaves
    names: tuple[str, ...]
    bind: Callable[[Sequence[Tensor]], Any]
    restore: Callable[[Sequence[Tensor]], Any]
    normalises: bool = False
    bounds: Bounds | None = None

    @property
    def size(self) -> int:
        """Number p of parameters."""
        return sum(leaf.numel() for leaf in self.leaves)

    def values(self, dtype: torch.dtype | None = None) -> Leaves:
        """Return the leaves outside of any graph, cast where a dtype is given."""
        return tuple(leaf.detach() if dtype is None else leaf.detach().to(dtype) for leaf in self.leaves)

    def split(self, flat: Float[Tensor, "*batch p"]) -> Leaves:
        """Return views of a flat vector in the leaves' shapes."""
        parts = flat.split([leaf.numel() for leaf in self.leaves], -1)
        return tuple(
            part.unflatten(-1, leaf.shape) if leaf.dim() else part.squeeze(-1)
            for part, leaf in zip(parts, self.leaves, strict=True)
        )

    def write(self, values: Sequence[Tensor]) -> None:
        """Write values into the parameters in place."""
        with torch.no_grad():
            for leaf, value in zip(self.leaves, values, strict=True):
                leaf.copy_(value)


def params_of(params: Any, call: str) -> Params:
    """Take parameters apart.

    Raises:
        OptionError: There is no tensor, or tensors are not floating, or of several dtypes or devices.
    """
    if isinstance(params, nn.Module):
        _warn_of_hidden(params, call)
        named = {name: p for name, p in params.named_parameters() if p.requires_grad}
        names, leaves = tuple(named), tuple(named.values())
        bind: Callable[[Sequence[Tensor]], Any] = lambda values: BoundModule(  # noqa: E731
            params, dict(zip(names, values, strict=True))
        )
        restore: Callable[[Sequence[Tensor]], Any] = lambda values: dict(zip(names, values, strict=True))  # noqa: E731
    else:
        paths, structure = tree_flatten_with_path(params)
        names, leaves = tuple(keystr(path) for path, _ in paths), tuple(leaf for _, leaf in paths)
        bind = restore = lambda values: tree_unflatten(list(values), structure)
    kinds = {(leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves}
    if len(kinds) != 1 or not all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
        raise OptionError(
            call, "params cannot be used", expected="trainable floating tensors of one dtype on one device",
            got=sorted(map(str, kinds)), fix="Pass a module, a tensor, or nested dicts, lists and tuples of tensors",
        )  # fmt: skip
    modules = params.modules() if isinstance(params, nn.Module) else ()
    return Params(leaves, names, bind, restore, any(isinstance(module, NORMALISATIONS) for module in modules))


def _warn_of_hidden(module: nn.Module, call: str) -> None:
    """Warn of parameters in plain containers, which are constants where ``forward`` reads them there."""
    hidden = [
        f"{name}.{attribute}".lstrip(".")
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if not attribute.startswith("_") and isinstance(value, dict | list | tuple)
        if any(isinstance(leaf, nn.Parameter) and leaf.requires_grad for leaf in tree_flatten(value)[0])
    ]
    if hidden:
        warnings.warn(f"{call}: parameters in {', '.join(hidden)} count as constants. {HIDDEN}.", stacklevel=4)


def count_samples(samples: Any, call: str, name: str) -> int:
    """Return the common length of all leaves of a batch.

    Raises:
        BatchError: A leaf is no tensor, or lengths differ, or there is no sample.
    """
    leaves, _ = tree_flatten(samples)
    lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        raise BatchError(
            call, f"batch of {name!r} cannot be used", expected="tensors with the same number (>= 1) of samples first",
            got=[list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves],
            fix="Give every tensor a sample dimension; close over constants in the residual function",
        )  # fmt: skip
    return next(length for length in lengths if length is not None)


def take(samples: Any, start: int, stop: int) -> Any:
    """Return a copy of the samples start..stop of a batch: functions may change theirs in place."""
    return tree_map(lambda leaf: leaf[start:stop].clone(), samples)


def cast(samples: Any, dtype: torch.dtype) -> Any:
    """Return a batch with its floating tensors in another dtype."""
    return tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, samples)
