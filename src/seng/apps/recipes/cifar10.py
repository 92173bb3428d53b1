"""The paper's experiments on CIFAR-10."""

from __future__ import annotations

from dataclasses import replace

from ...errors import choose
from ..train.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from .paper import PAPER
from .variant import Variant

SENG = OptimizerConfig("seng", lr=0.05, weight_decay=1e-2, seng=replace(PAPER, damping=2.0, refresh_every=200))

# 200 epochs and a cosine are what residual networks are usually trained with here: Loshchilov and Hutter, SGDR, 2017;
# batch, rate and decay of SGD are DeVries and Taylor's, Cutout, 2017. AdamW's decay is Loshchilov and Hutter's, 2019:
# their normalised 0.025 is 0.09 in torch's form, for this rate, batch and number of epochs.
USUAL = {
    "sgd": Variant(OptimizerConfig("sgd", lr=0.1, nesterov=True), ScheduleConfig("cosine"), 200, 128),
    "adamw": Variant(OptimizerConfig("adamw", lr=0.001, weight_decay=0.09), ScheduleConfig("cosine"), 200, 128),
}


def cifar10_resnet18(optimizer: str = "seng") -> RunConfig:
    """Classify CIFAR-10 (60,000 colour pictures of 32 x 32 pixels) with ResNet-18.

    With SENG the settings are the paper's: 65 epochs of batches of 256 under the rate 0.05 (1 - epoch/70)^6.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings, epochs and batch of its own.
    """
    return _cifar10("cifar10-resnet18", ModelConfig("cifar-resnet18", (64, 128, 256, 512)), optimizer, epochs=65)


def cifar10_vgg16bn(optimizer: str = "seng") -> RunConfig:
    """Classify CIFAR-10 (60,000 colour pictures of 32 x 32 pixels) with VGG-16 and batch norm.

    With SENG the settings are the paper's: 70 epochs of batches of 256 under the rate 0.05 (1 - epoch/75)^6.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings, epochs and batch of its own.
    """
    return _cifar10("cifar10-vgg16bn", ModelConfig("cifar-vgg16bn", (64, 128, 256, 512, 512)), optimizer, epochs=70)


def _cifar10(recipe: str, model: ModelConfig, optimizer: str, epochs: int) -> RunConfig:
    paper = Variant(SENG, ScheduleConfig(power=6.0, horizon_epochs=epochs + 5), epochs, batch_size=256)
    chosen = choose({"seng": paper, **USUAL}, optimizer, call=recipe, option="optimizer")
    return RunConfig(
        recipe=recipe,
        model=model,
        data=DataConfig("cifar10", augment=True, workers=2),
        optimizer=chosen.optimizer,
        schedule=chosen.schedule,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
    )
