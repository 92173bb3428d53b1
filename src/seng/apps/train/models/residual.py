"""Residual networks with batch norm: a small one, and the two that results are published for."""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor, nn

from .initial import he_normal


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut (1x1 where the shape changes).

    A bottleneck has a 1x1 convolution to a quarter of the channels, a 3x3 one, which also does the stride, and a 1x1
    one back. (The first paper had the stride in the first 1x1 convolution, which throws three quarters of its input
    away; the later form, "v1.5", is the one that published results are of. Parameters are as many.)
    """

    def __init__(self, before: int, after: int, stride: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        narrow = after // 4
        wide_body = ((before, after, 3, stride), (after, after, 3, 1))
        narrow_body = ((before, narrow, 1, 1), (narrow, narrow, 3, stride), (narrow, after, 1, 1))
        layers = [_convolution(*shape) for shape in (narrow_body if bottleneck else wide_body)]
        self.body = nn.Sequential(*itertools.chain.from_iterable((*layer, nn.ReLU()) for layer in layers))[:-1]
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(*_convolution(before, after, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, inputs: Float[Tensor, "n before h w"]) -> Float[Tensor, "n after h2 w2"]:
        """Return relu(body + shortcut)."""
        return self.relu(self.body(inputs) + self.shortcut(inputs))


def small_resnet(widths: tuple[int, ...], channels: int = 1, classes: int = 10) -> nn.Module:
    """Build a residual network with one block a width; each but the first halves the picture.

    Args:
        widths: channels of each block, at least one.
        channels: channels of the picture.
        classes: number of classes.

    Returns:
        A module from ``[n, channels, height, width]`` to ``[n, classes]``.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016.
    """
    stem = (*_convolution(channels, widths[0], 3, 1), nn.ReLU())
    return _resnet(stem, widths[0], widths, (1,) * len(widths), classes)


def cifar_resnet18(widths: tuple[int, ...] = (64, 128, 256, 512), channels: int = 3, classes: int = 10) -> nn.Module:
    """Build ResNet-18 in its form for pictures of 32 x 32 pixels: a 3x3 stem that keeps the size.

    Args:
        widths: channels of the four stages of two blocks.
        channels: channels of the picture.
        classes: number of classes.

    Returns:
        A module from ``[n, channels, height, width]`` to ``[n, classes]``; 11,173,962 parameters at the defaults.

    Source: He et al., 2016; the 3x3 stem is what the field uses for CIFAR.
    """
    stem = (*_convolution(channels, widths[0], 3, 1), nn.ReLU())
    return he_normal(_resnet(stem, widths[0], widths, (2, 2, 2, 2), classes))


def imagenet_resnet50(
    widths: tuple[int, ...] = (256, 512, 1024, 2048), channels: int = 3, classes: int = 1000
) -> nn.Module:
    """Build ResNet-50 (v1.5): a 7x7 stem and a pool that quarter the size, then 16 bottlenecks.

    Args:
        widths: channels of the four stages' outputs, multiples of 4.
        channels: channels of the picture.
        classes: number of classes.

    Returns:
        A module from ``[n, channels, height, width]`` to ``[n, classes]``; 25,557,032 parameters at the defaults.

    Source: He et al., 2016; Goyal et al., Accurate, Large Minibatch SGD, 2017, for the place of the stride.
    """
    narrow = widths[0] // 4
    stem = (*_convolution(channels, narrow, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    return he_normal(_resnet(stem, narrow, widths, (3, 4, 6, 3), classes, bottleneck=True))


def _resnet(
    stem: tuple[nn.Module, ...],
    before: int,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    classes: int,
    *,
    bottleneck: bool = False,
) -> nn.Module:
    """Put stages of ``depths`` blocks after a stem with ``before`` channels; all but the first halve the size."""
    blocks: list[nn.Module] = []
    for stage, (after, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(ResidualBlock(before, after, stride, bottleneck=bottleneck))
            before = after
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def _convolution(before: int, after: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(after)
