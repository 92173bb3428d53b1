"""The paper's recipes carry its published settings."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn

from seng import Options
from seng.apps.recipes import build_recipe
from seng.apps.recipes.paper import PAPER
from seng.apps.train.config import SengConfig
from seng.apps.train.data import signature
from seng.apps.train.models import build_model
from seng.apps.train.optimizers import build_optimizer, rate_at, seng_options

STEPS = 100  # an epoch
ROUNDING = 1e-12  # a few float64 products
PUBLISHED = {"cifar10-resnet18": 11_173_962, "cifar10-vgg16bn": 14_728_266, "imagenet-resnet50": 25_557_032}


def test_paper_options_are_the_presets():
    changed = {name: value for name, value in asdict(PAPER).items() if value != getattr(SengConfig(), name)}
    assert Options.build("f()", changed) == Options.build("f()", {"preset": "paper"}).with_(preset=None)
    assert (PAPER.sketch, PAPER.sketch_size, PAPER.rank) == ("uniform", 256, 16)


@pytest.mark.parametrize(
    ("recipe", "epochs", "rate", "horizon", "warmup"),
    [
        ("cifar10-resnet18", 65, 0.05, 70, 0),
        ("cifar10-vgg16bn", 70, 0.05, 75, 0),
        ("imagenet-resnet50", 41, 0.145, 60, 5),
    ],
)
def test_paper_recipe_follows_the_published_rate(recipe: str, epochs: int, rate: float, horizon: int, warmup: int):
    config = build_recipe(recipe)
    assert (config.epochs, config.batch_size, config.optimizer.momentum) == (epochs, 256, 0.9)
    for epoch in (0, 3, 5, 20, epochs):
        warm = min(1.0, (epoch + 1 / STEPS) / warmup) if warmup else 1.0
        got = config.optimizer.lr * rate_at(epoch * STEPS, config.schedule, epochs, STEPS)
        assert got == pytest.approx(warm * rate * (1 - epoch / horizon) ** 6, rel=ROUNDING)


@pytest.mark.parametrize("recipe", ["cifar10-resnet18", "cifar10-vgg16bn"])
def test_paper_recipe_on_cifar_has_the_published_damping_and_decay(recipe: str):
    config = build_recipe(recipe)
    assert config.optimizer.seng is not None
    options = seng_options(config.optimizer.seng, STEPS)
    assert (options["damping"], options["damping_mode"], options["refresh_every"]) == (2.0, "absolute", 200)
    assert config.optimizer.weight_decay == 1e-2


def test_paper_recipe_on_imagenet_has_the_published_damping_and_smoothing():
    config = build_recipe("imagenet-resnet50")
    assert config.optimizer.seng is not None
    options = seng_options(config.optimizer.seng, STEPS)
    for epoch in (0, 5, 10, 41):
        assert options["damping"](epoch * STEPS) == pytest.approx(0.17 * 0.9 ** (epoch / 10), rel=ROUNDING)
    assert 500 <= options["refresh_every"] <= 1000
    assert (config.loss.label_smoothing, config.optimizer.weight_decay) == (0.1, 1e-4)
    assert config.data.augment


@pytest.mark.parametrize("optimizer", ["seng", "sgd", "adamw"])
def test_imagenet_recipe_spares_norms_and_biases(optimizer: str):
    config = build_recipe("imagenet-resnet50", optimizer)
    model = build_model(config.model, signature(config.data))
    spared = {p for group in build_optimizer(model, config, STEPS).param_groups if not group["weight_decay"]
              for p in group["params"]}  # fmt: skip
    expected = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert spared == expected | {head.bias for head in heads}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_paper_recipe_builds_the_published_network(recipe: str):
    config = build_recipe(recipe)
    with torch.device("meta"):
        model = build_model(config.model, signature(config.data))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[recipe]
