"""Normalisation layers: per-sample gradients of scale and shift, statistics held fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import Gradients, LayerCall, Names


def batch_norm(module: nn.Module, call: LayerCall) -> Gradients:
    """Normalise with the batch's statistics in training, with the running ones in evaluation."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if call.training or module.running_mean is None or module.running_var is None:
        normal = F.batch_norm(call.x, None, None, training=True, eps=module.eps)
    else:
        normal = F.batch_norm(call.x, module.running_mean, module.running_var, training=False, eps=module.eps)
    return _channel_rows(normal, call.g, call.wanted)


def instance_norm(module: nn.Module, call: LayerCall) -> Gradients:
    """Normalise each sample and channel; with running statistics in evaluation where they are tracked."""
    assert isinstance(module, nn.modules.instancenorm._InstanceNorm)
    x, g = call.x, call.g
    if x.dim() == module._get_no_batch_dim():
        x, g = x[None], g[None]
    if call.training or not module.track_running_stats:
        normal = F.instance_norm(x, eps=module.eps)
    else:
        normal = F.instance_norm(x, module.running_mean, module.running_var, use_input_stats=False, eps=module.eps)
    return _channel_rows(normal, g, call.wanted)


def group_norm(module: nn.Module, call: LayerCall) -> Gradients:
    """Normalise each sample over groups of channels."""
    assert isinstance(module, nn.GroupNorm)
    return _channel_rows(F.group_norm(call.x, module.num_groups, eps=module.eps), call.g, call.wanted)


def layer_norm(module: nn.Module, call: LayerCall) -> Gradients:
    """Normalise over the trailing dimensions; those before, but for the batch, are positions."""
    assert isinstance(module, nn.LayerNorm)
    shape = list(module.normalized_shape)
    return trailing_rows(F.layer_norm(call.x, shape, eps=module.eps), call.g, len(shape), call.wanted)


def rms_norm(module: nn.Module, call: LayerCall) -> Gradients:
    """Divide by the root mean square over the trailing dimensions."""
    assert isinstance(module, nn.RMSNorm)
    shape = list(module.normalized_shape)
    return trailing_rows(F.rms_norm(call.x, shape, eps=module.eps), call.g, len(shape), call.wanted)


def _channel_rows(normal: Tensor, g: Tensor, wanted: Names) -> Gradients:
    """Sum over everything behind the channels: parts [n, channels]."""
    normal, g = normal.flatten(2) if g.dim() > 2 else normal[..., None], g.flatten(2) if g.dim() > 2 else g[..., None]
    return _rows(normal, g, 2, wanted)


def trailing_rows(normal: Tensor, g: Tensor, trailing: int, wanted: Names, weight: str = "weight") -> Gradients:
    """Sum over everything between the batch and the normalised dimensions: parts [n, prod(normalised)]."""
    features = normal.shape[normal.dim() - trailing :].numel()
    n = normal.shape[0] if normal.dim() > trailing else 1
    return _rows(normal.reshape(n, -1, features), g.reshape(n, -1, features), 1, wanted, weight)


def _rows(normal: Tensor, g: Tensor, axis: int, wanted: Names, weight: str = "weight") -> Gradients:
    wide = torch.promote_types(g.dtype, torch.float32)
    g = g.to(wide)
    parts = {weight: lambda: torch.linalg.vecdot(normal.to(wide), g, dim=axis), "bias": lambda: g.sum(axis)}
    return {name: parts[name]() for name in wanted}
