"""Bare parameters that are broadcast over the batch: class tokens, position parameters, layer scales."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from torch import nn

from .contract import Gradients, Layer, LayerCall


@dataclass(frozen=True)
class Bare:
    """The gradients of a parameter from those of what it was expanded to, one copy a sample.

    Args:
        name: The parameter's name within its module.
    """

    name: str

    def __call__(self, module: nn.Module, call: LayerCall) -> Gradients:
        shape, g = attrgetter(self.name)(module).shape, call.g
        return {self.name: g.sum_to_size(len(g), *((1,) * (g.dim() - len(shape)) + shape)[1:])}


def bare(name: str) -> Layer:
    """Return the layer of one parameter of a module, whatever the module computes."""
    return Layer(Bare(name), lambda module: ((name,),), reads=True)
