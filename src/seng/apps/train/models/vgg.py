"""VGG-16 with batch norm, in its form for pictures of 32 x 32 pixels."""

from __future__ import annotations

from torch import nn

from .initial import he_normal

DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage: configuration D of the paper


def cifar_vgg16bn(
    widths: tuple[int, ...] = (64, 128, 256, 512, 512), channels: int = 3, classes: int = 10
) -> nn.Module:
    """Build 13 convolutions of 3x3 with batch norm, a pool after each of five stages, and one linear layer.

    The paper's three wide linear layers, 120 million parameters for ImageNet, are one here, as is usual for CIFAR.
    The convolutions keep their biases, which batch norm makes idle: the published count has them.

    Args:
        widths: channels of the five stages.
        channels: channels of the picture.
        classes: number of classes.

    Returns:
        A module from ``[n, channels, height, width]``, 32 pixels or more a side, to ``[n, classes]``; 14,728,266
        parameters at the defaults.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015.
    """
    layers: list[nn.Module] = []
    before = channels
    for after, depth in zip(widths, DEPTHS, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    return he_normal(nn.Sequential(*layers, *head))
