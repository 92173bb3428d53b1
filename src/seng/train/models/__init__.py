"""The networks that the recipes train: ordinary PyTorch modules, unaware of any optimizer.

A new one is one file and one line in ``MODELS``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...errors import choose
from ..config import ModelConfig
from ..data import Signature
from ..errors import ConfigError
from .autoencoder import deep_autoencoder
from .convolutional import small_cnn
from .residual import ResidualBlock, small_resnet

MODELS: dict[str, Callable[[ModelConfig, Signature], nn.Module]] = {
    "small-cnn": lambda model, data: small_cnn(_widths(model), data.shape[0], _classes(data)),
    "small-resnet": lambda model, data: small_resnet(_widths(model), data.shape[0], _classes(data)),
    "deep-autoencoder": lambda model, data: deep_autoencoder(_widths(model)),
}


def build_model(config: ModelConfig, data: Signature) -> nn.Module:
    """Return the network that ``config`` names for samples like ``data``'s, its parameters from torch's generator.

    Raises:
        SengError: no model has that name, or its settings do not fit it or the data.
    """
    return choose(MODELS, config.name, call="build_model", option="model")(config, data)


def _widths(config: ModelConfig) -> tuple[int, ...]:
    if not config.widths or min(config.widths) < 1:
        expected = "one or more numbers above 0"
        raise ConfigError("build_model", "bad widths", expected=expected, got=config.widths, fix="Correct them")
    return config.widths


def _classes(data: Signature) -> int:
    if data.classes is None:
        fix = "Choose a model that reconstructs its input"
        raise ConfigError("build_model", "the data have no classes", expected="classes", got=None, fix=fix)
    return data.classes


__all__ = ["MODELS", "ResidualBlock", "build_model", "deep_autoencoder", "small_cnn", "small_resnet"]
