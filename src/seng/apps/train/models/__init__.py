"""The networks that the recipes train: ordinary PyTorch modules, unaware of any optimizer.

A new one is one file and one line in ``MODELS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from ....errors import choose
from ..config import ModelConfig
from ..data import Signature
from ..errors import ConfigError
from .autoencoder import deep_autoencoder
from .convolutional import small_cnn
from .perceptron import perceptron
from .residual import ResidualBlock, cifar_resnet18, imagenet_resnet50, small_resnet
from .transformer import CharTransformer
from .vgg import cifar_vgg16bn
from .vision_transformer import PATCH, VisionTransformer

MODELS: dict[str, Callable[[ModelConfig, Signature], nn.Module]] = {
    "small-cnn": lambda model, data: small_cnn(_widths(model), _channels(data), _classes(data)),
    "small-resnet": lambda model, data: small_resnet(_widths(model), _channels(data), _classes(data)),
    "deep-autoencoder": lambda model, data: deep_autoencoder(_widths(model)),
    "char-transformer": lambda model, data: _char_transformer(model, data),
    "perceptron": lambda model, data: perceptron(math.prod(data.shape), _widths(model), data.classes or 1),
    "vision-transformer": lambda model, data: _vision_transformer(model, data),
    "cifar-resnet18": lambda model, data: cifar_resnet18(_stages(model, 4), _channels(data), _classes(data)),
    "cifar-vgg16bn": lambda model, data: cifar_vgg16bn(_stages(model, 5), _channels(data), _classes(data)),
    "imagenet-resnet50": lambda model, data: imagenet_resnet50(
        _stages(model, 4, multiple=4), _channels(data), _classes(data)
    ),
}


def build_model(config: ModelConfig, data: Signature) -> nn.Module:
    """Return the network that ``config`` names for samples like ``data``'s, its parameters from torch's generator.

    Raises:
        SengError: no model has that name, or its settings do not fit it or the data.
    """
    return choose(MODELS, config.name, call="build_model", option="model")(config, data)


def _char_transformer(model: ModelConfig, data: Signature) -> CharTransformer:
    """The first width is the stream's, the others those of the blocks' hidden layers."""
    if not data.texts:
        raise _misfit("the data are no texts", "samples of shape (length,)", data.shape, "Choose a data set of texts")
    width, hidden = _attentive(model)
    return CharTransformer(_classes(data), data.shape[0], width, hidden, model.heads, model.dropout)


def _vision_transformer(model: ModelConfig, data: Signature) -> VisionTransformer:
    """The widths are those of the character transformer."""
    width, hidden = _attentive(model)
    channels, (height, wide) = _channels(data), data.shape[1:]
    if height % PATCH or wide % PATCH:
        raise _misfit("patches do not fill the pictures", f"multiples of {PATCH}", data.shape, "Choose other pictures")
    return VisionTransformer(channels, (height, wide), _classes(data), width, hidden, model.heads, model.dropout)


def _attentive(model: ModelConfig) -> tuple[int, tuple[int, ...]]:
    """Return the width of a transformer's stream and those of its blocks' hidden layers."""
    width, *hidden = _widths(model)
    if model.heads < 1 or width % model.heads:
        expected = f"a divisor of the width {width}"
        raise _misfit("heads do not divide the width", expected, model.heads, "Correct model.heads")
    if not 0 <= model.dropout < 1:
        raise _misfit("dropout is out of range", "0 or more and below 1", model.dropout, "Correct model.dropout")
    return width, tuple(hidden)


def _widths(config: ModelConfig) -> tuple[int, ...]:
    if not config.widths or min(config.widths) < 1:
        raise _misfit("bad widths", "one or more numbers above 0", config.widths, "Correct them")
    return config.widths


def _stages(config: ModelConfig, stages: int, multiple: int = 1) -> tuple[int, ...]:
    widths = _widths(config)
    if len(widths) != stages or any(width % multiple for width in widths):
        expected = f"{stages} numbers" + (f", multiples of {multiple}" if multiple > 1 else "")
        raise _misfit("bad widths", expected, widths, "Give one a stage in model.widths")
    return widths


def _channels(data: Signature) -> int:
    if len(data.shape) != 3:
        expected = "samples of shape (channels, height, width)"
        raise _misfit("the data are no pictures", expected, data.shape, "Choose a data set of pictures")
    return data.shape[0]


def _classes(data: Signature) -> int:
    if data.classes is None:
        fix = "Choose a model that reconstructs its input"
        raise _misfit("the data have no classes", "classes", None, fix)
    return data.classes


def _misfit(problem: str, expected: str, got: object, fix: str) -> ConfigError:
    return ConfigError("build_model", problem, expected=expected, got=got, fix=fix)


__all__ = [
    "MODELS",
    "CharTransformer",
    "ResidualBlock",
    "VisionTransformer",
    "build_model",
    "cifar_resnet18",
    "cifar_vgg16bn",
    "deep_autoencoder",
    "imagenet_resnet50",
    "perceptron",
    "small_cnn",
    "small_resnet",
]
