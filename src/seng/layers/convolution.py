"""Convolutions and transposed ones in one to three dimensions, with every stride, padding, dilation and grouping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..per_sample import Product
from .contract import Gradients, LayerCall
from .linear import product


def convolution(module: nn.Module, call: LayerCall) -> Gradients:
    """Output pixels are positions; ``a`` is a strided view of the padded input, unfolded only when used.

    a [c, n, *pixels, d_in / c, *kernel], g [c, n, s, d_out / c] for c groups.
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    x, g = _batched(module, call)
    pads: list[int] = list(module._reversed_padding_repeated_twice)
    if any(pads):
        x = F.pad(x, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    return product(_patches(module, x, g.shape[2:]), _by_group(module, g), call.wanted)


def transposed_convolution(module: nn.Module, call: LayerCall) -> Gradients:
    """Input pixels are positions: the weight's gradient is that of the convolution from the output to the input.

    a [c, n, *pixels, d_out / c, *kernel] are patches of the output gradient, and g [c, n, s, d_in / c] is the input.
    """
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    x, g = _batched(module, call)
    found: dict[Any, Any] = {"bias": g.flatten(2).sum(2)} if "bias" in call.wanted else {}
    if "weight" in call.wanted:
        pads = [side for pad in reversed(module.padding) for side in (int(pad), int(pad))]
        a = _patches(module, F.pad(g, pads) if any(pads) else g, x.shape[2:])
        found["weight",] = Product(a, _by_group(module, x))
    return found


def _batched(module: nn.modules.conv._ConvNd, call: LayerCall) -> tuple[Tensor, Tensor]:
    """Return input and output gradient with a batch dimension; without one they are one sample."""
    unbatched = call.x.dim() == len(module.kernel_size) + 1
    return (call.x[None], call.g[None]) if unbatched else (call.x, call.g)


def _by_group(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Return [c, n, s, d / c] of [n, d, *pixels]."""
    return x.reshape(len(x), module.groups, x.shape[1] // module.groups, -1).permute(1, 0, 3, 2)


def _patches(module: nn.modules.conv._ConvNd, x: Tensor, pixels: torch.Size) -> Tensor:
    """Return [c, n, *pixels, d / c, *kernel], a view of the padded x [n, d, *space]."""
    n, c = x.shape[0], module.groups
    batch, channel, *space = x.stride()
    inside = [stride * dilation for stride, dilation in zip(space, module.dilation, strict=True)]
    across = [stride * step for stride, step in zip(space, module.stride, strict=True)]
    group = x.shape[1] // c
    shape = (c, n, *pixels, group, *module.kernel_size)
    return x.as_strided(shape, (channel * group, batch, *across, channel, *inside), x.storage_offset())
