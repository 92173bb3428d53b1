"""Convolutions in one to three dimensions, with every stride, padding, dilation, grouping and padding mode."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .contract import Gradients, LayerCall
from .linear import product


def convolution(module: nn.Module, call: LayerCall) -> Gradients:
    """Output pixels are positions; ``a`` is a strided view of the padded input, unfolded only when used.

    a [c, n, d_in / c, *kernel, *pixels], g [c, n, d_out / c, s] for c groups.
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    x, g = call.x, call.g
    if x.dim() == len(module.kernel_size) + 1:  # without a batch dimension: one sample
        x, g = x[None], g[None]
    c, n = module.groups, x.shape[0]
    pixels = g.shape[2:]
    g = g.reshape(n, c, module.out_channels // c, -1).transpose(0, 1)
    return product(_patches(module, x, tuple(pixels)), g, 1 + len(pixels), call.wanted)


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, pixels: tuple[int, ...]) -> Tensor:
    pads: list[int] = list(module._reversed_padding_repeated_twice)
    if any(pads):
        x = F.pad(x, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    n, c = x.shape[0], module.groups
    batch, channel, *space = x.stride()
    inside = [stride * dilation for stride, dilation in zip(space, module.dilation, strict=True)]
    across = [stride * step for stride, step in zip(space, module.stride, strict=True)]
    group = module.in_channels // c
    shape = (c, n, group, *module.kernel_size, *pixels)
    return x.as_strided(shape, (channel * group, batch, channel, *inside, *across), x.storage_offset())
