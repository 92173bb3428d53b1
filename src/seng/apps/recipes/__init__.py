"""Recipes: each a function from an optimizer's name to everything that a run needs to know.

A new recipe is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import choose
from ..train.config import RunConfig
from .char_gpt import char_gpt
from .cifar10 import cifar10_resnet18, cifar10_vgg16bn
from .digits import digits
from .fashion_autoencoder import fashion_autoencoder
from .fashion_resnet import fashion_resnet
from .imagenet import imagenet_resnet50
from .peers import PEERS

Recipe = Callable[[str], RunConfig]

RECIPES: dict[str, Recipe] = {
    "digits": digits,
    "fashion-resnet": fashion_resnet,
    "fashion-autoencoder": fashion_autoencoder,
    "char-gpt": char_gpt,
    "cifar10-resnet18": cifar10_resnet18,
    "cifar10-vgg16bn": cifar10_vgg16bn,
    "imagenet-resnet50": imagenet_resnet50,
}


def build_recipe(name: str, optimizer: str = "seng") -> RunConfig:
    """Return the settings of a recipe with an optimizer.

    Optimizers for which the recipe has no settings take the place of its AdamW, with their own defaults.

    Raises:
        OptionError: no recipe has that name, or there is no such optimizer.
    """
    recipe = choose(RECIPES, name, call="seng", option="recipe")
    if optimizer not in PEERS:
        return recipe(optimizer)
    config = recipe("adamw")
    return replace(config, optimizer=replace(PEERS[optimizer], decay_norms=config.optimizer.decay_norms))


def summary(name: str) -> str:
    """Return the first line of a recipe's description."""
    return (RECIPES[name].__doc__ or "").splitlines()[0]


__all__ = [
    "RECIPES",
    "build_recipe",
    "char_gpt",
    "cifar10_resnet18",
    "cifar10_vgg16bn",
    "digits",
    "fashion_autoencoder",
    "fashion_resnet",
    "imagenet_resnet50",
    "summary",
]
