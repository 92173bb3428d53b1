"""Layers: how each supported module gives its inputs and output gradients in canonical form.

A layer is one function ``(module, x, g, wanted, training) -> LayerIO`` of the module's input x [n, ...], the
gradient g of its output, the names of its trainable parameters and its mode. Adding one is a line in the table.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..types import LayerIO
from .convolution import convolution
from .embedding import embedding
from .linear import linear
from .norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm

__all__ = ["LAYERS", "UNSUPPORTED_CONTAINERS", "layer_function"]

LayerFunction = Callable[[nn.Module, Tensor, Tensor, tuple[str, ...], bool], LayerIO]

LAYERS: dict[type[nn.Module], LayerFunction] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.RMSNorm: rms_norm,
}

# modules that read their children's parameters without calling the children: their weights pass through
UNSUPPORTED_CONTAINERS: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "nn.MultiheadAttention reads its projections without calling a layer",
}


def layer_function(module: nn.Module) -> LayerFunction | None:
    """Return the table's function for a module, also for subclasses that keep the forward pass."""
    for kind, function in LAYERS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward and _plain(module):
            return function
    return None


def _plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return not module.sparse and not module.scale_grad_by_freq and module.max_norm is None
    return True
