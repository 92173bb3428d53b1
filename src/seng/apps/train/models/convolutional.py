"""A small network of convolutions, for pictures of any size."""

from __future__ import annotations

import itertools

from torch import nn


def small_cnn(widths: tuple[int, ...], channels: int = 1, classes: int = 10) -> nn.Module:
    """Build a network of 3x3 convolutions, each but the first halving the picture, and a linear head.

    Args:
        widths: channels of each convolution, at least one.
        channels: channels of the picture.
        classes: number of classes.

    Returns:
        A module from ``[n, channels, height, width]`` to ``[n, classes]`` for any picture size.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise((channels, *widths))):
        layers += [nn.Conv2d(before, after, 3, stride=1 if index == 0 else 2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], classes))
