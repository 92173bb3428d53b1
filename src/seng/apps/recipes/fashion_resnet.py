"""A residual network with batch norm on 60,000 real pictures."""

from __future__ import annotations

from ...errors import choose
from ..train.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, SengConfig

OPTIMIZERS = {
    "seng": OptimizerConfig("seng", lr=0.1, seng=SengConfig(trust=1.0)),
    "sgd": OptimizerConfig("sgd", lr=0.3),
    "adamw": OptimizerConfig("adamw", lr=0.003, weight_decay=0.01),
}


def fashion_resnet(optimizer: str = "seng") -> RunConfig:
    """Classify Fashion-MNIST (70,000 pictures of 28 x 28 pixels) with a small residual network.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings of its own.
    """
    return RunConfig(
        recipe="fashion-resnet",
        model=ModelConfig("small-resnet", widths=(16, 32, 64)),
        data=DataConfig("fashion-mnist"),
        optimizer=choose(OPTIMIZERS, optimizer, call="fashion_resnet", option="optimizer"),
        epochs=3,
        batch_size=256,
    )
