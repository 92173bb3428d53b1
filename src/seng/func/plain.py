"""Layers in plain operations where torch's own have no right derivatives of high order under ``torch.func``.

Those of layer, instance and batch normalisation are wrong without a word in third order: from the second backward pass
on, the mean and the spread of the input are taken as constants. That of PReLU fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *_: Any,
) -> Tensor:  # fmt: skip
    """Compute ``torch.nn.functional.layer_norm``."""
    y = _standardised(input, list(range(-len(normalized_shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Compute ``torch.nn.functional.batch_norm``."""
    if not training or running_mean is not None:  # running statistics are not for functions of a point
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _by_channel(_standardised(input, [0, *range(2, input.dim())], eps), weight, bias)


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Compute ``torch.nn.functional.instance_norm``."""
    if not use_input_stats or running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _by_channel(_standardised(input, list(range(2, input.dim())), eps), weight, bias)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Compute ``torch.nn.functional.prelu``."""
    slope = weight.view(-1, *[1] * (input.dim() - 2)) if weight.numel() > 1 else weight
    return torch.where(input > 0, input, slope * input)


def _standardised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *[1] * (x.dim() - 2))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


NORMALISATIONS = (nn.LayerNorm, nn.modules.batchnorm._NormBase)
PLAIN: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    torch.layer_norm: layer_norm,
    torch.prelu: prelu,
}


class SpelledOut(TorchFunctionMode):
    """Within it, these layers are computed in plain operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen: Any = PLAIN.get(func, func)
        return chosen(*args, **(kwargs or {}))
