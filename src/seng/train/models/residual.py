"""A small residual network with batch norm."""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut (1x1 where the shape changes)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
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
    stem = [nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    blocks = [
        ResidualBlock(before, after, stride=1 if index == 0 else 2)
        for index, (before, after) in enumerate(itertools.pairwise((widths[0], *widths)))
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
