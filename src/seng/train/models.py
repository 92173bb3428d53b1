"""The networks that the recipes train: small, ordinary PyTorch modules, unaware of any optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import choose
from .config import ModelConfig
from .errors import ConfigError


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


def deep_autoencoder(widths: tuple[int, ...]) -> nn.Module:
    """Build a tanh autoencoder, its decoder the encoder's mirror image; the output is linear.

    Args:
        widths: the picture's size, the hidden layers', and last the code's: 784, 500, 250, 100, 30.

    Returns:
        A module from ``[n, ...]`` with ``widths[0]`` numbers a sample to ``[n, widths[0]]``.

    Source: Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006; start of
    Glorot and Bengio, 2010.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise((*widths, *widths[-2::-1])):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight)  # torch's own start shrinks the signal by 3 ** 4 on its way
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


MODELS: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "small-cnn": small_cnn,
    "small-resnet": small_resnet,
    "deep-autoencoder": deep_autoencoder,
}


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network that ``config`` names, with fresh parameters from torch's global generator.

    Raises:
        SengError: no model has that name, or a width is not positive.
    """
    build = choose(MODELS, config.name, call="build_model", option="model")
    if not config.widths or min(config.widths) < 1:
        raise ConfigError(
            "build_model",
            "bad widths",
            expected="one or more numbers above 0",
            got=config.widths,
            fix="Correct them",
        )
    return build(config.widths)
