"""PReLU: one slope for all channels, or one a channel."""

from __future__ import annotations

from torch import nn

from .contract import Gradients, LayerCall


def prelu(module: nn.Module, call: LayerCall) -> Gradients:
    """The slope's gradient is the sum of the negative inputs times the output gradients."""
    assert isinstance(module, nn.PReLU)
    u = call.x.clamp(max=0) * call.g
    u = u[:, None] if u.dim() == 1 else u
    rows = u.flatten(2).sum(2) if u.dim() > 2 else u
    return {"weight": rows if module.num_parameters > 1 else rows.sum(1, keepdim=True)}
