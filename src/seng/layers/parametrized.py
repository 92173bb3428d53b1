"""Layers under torch.nn.utils.parametrize, such as weight norm and spectral norm: the chain rule, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from ..per_sample import Lookup
from .contract import Gradients, Layer, LayerCall, Names, UnsupportedCall


def parametrized(module: nn.Module, layer: Layer) -> Layer:
    """Return the layer of a module some of whose parameters may be computed from others."""
    if layer.reads or not is_parametrized(module):
        return layer
    return replace(layer, function=Computed(layer), parts=lambda module: _parts(module, layer), reads=True)


@dataclass(frozen=True)
class Computed:
    """The gradients of what a weight is computed from: those of the weight times the derivative of the weight.

    Args:
        layer: The layer without parametrizations.
    """

    layer: Layer

    def __call__(self, module: nn.Module, call: LayerCall) -> Gradients:
        wanted, inner = set(call.wanted), _inner(module, self.layer)
        parts = [tuple(key for key in part if wanted & {*_originals(module, key)}) for part in inner]
        parts = [part for part in parts if part]
        given = self.layer.function(module, replace(call, wanted=tuple(key for part in parts for key in part)))
        found: dict[Any, Any] = {}
        for part in parts:
            for key, rows in zip(part, _written_out(given, part), strict=True):
                names = _originals(module, key)
                found |= {key: rows} if names == (key,) else dict(zip(names, _chained(module, key, rows), strict=True))
        return found


def _inner(module: nn.Module, layer: Layer) -> tuple[Names, ...]:
    def there(key: str) -> bool:  # reading a computed weight computes it
        return is_parametrized(module, key) or module._parameters.get(key) is not None

    return tuple(tuple(filter(there, part)) for part in layer.parts(module))


def _parts(module: nn.Module, layer: Layer) -> tuple[Names, ...]:
    inner = _inner(module, layer)
    return tuple(tuple(name for key in part for name in _originals(module, key)) for part in inner if part)


def _originals(module: nn.Module, key: str) -> Names:
    """Return the names of the parameters that one is computed from, or its own."""
    if not is_parametrized(module, key):
        return (key,)
    return tuple(f"parametrizations.{key}.{name}" for name in _list_of(module, key)._parameters)


def _list_of(module: nn.Module, key: str) -> ParametrizationList:
    found = module.get_submodule(f"parametrizations.{key}")
    assert isinstance(found, ParametrizationList)
    return found


def _written_out(given: Gradients, part: Names) -> list[Tensor]:
    """Return the per-sample gradients of each parameter of a part, [n, p]. Memory: n p."""
    if part not in given:
        return [given[key].flatten(1) for key in part]
    io = given[part]
    if isinstance(io, Lookup):
        raise UnsupportedCall("its weight is computed, and gradients of its lookups are not written out")
    return list(io.written_out(1.0, io.dtype).parts)


def _chained(module: nn.Module, key: str, rows: Tensor) -> list[Tensor]:
    """Return the gradients of what a parameter is computed from. Cost: n times the computation's backward pass."""
    computation = _list_of(module, key)
    originals = [p for p in computation._parameters.values() if p is not None]
    trained = [p for p in originals if p.requires_grad]
    training = computation.training
    computation.eval()  # spectral norm would iterate once more
    try:
        with torch.enable_grad():
            value = computation()
        rows = rows.view(len(rows), *value.shape).to(value.dtype)
        found = torch.autograd.grad(value, trained, rows, allow_unused=True, is_grads_batched=True)
    finally:
        computation.train(training)
    of = {id(p): g for p, g in zip(trained, found, strict=True) if g is not None}
    return [of[id(p)] if id(p) in of else p.detach().new_zeros(len(rows), *p.shape) for p in originals]
