"""The deep autoencoder on which second-order methods are compared."""

from __future__ import annotations

from ..errors import choose
from ..train.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, SengConfig

OPTIMIZERS = {
    "seng": OptimizerConfig("seng", lr=0.05, weight_decay=0.0, seng=SengConfig()),
    "sgd": OptimizerConfig("sgd", lr=0.001, weight_decay=0.0),
    "adamw": OptimizerConfig("adamw", lr=0.001, weight_decay=0.01),
}


def fashion_autoencoder(optimizer: str = "seng") -> RunConfig:
    """Reconstruct Fashion-MNIST from 30 numbers a picture with a deep tanh autoencoder.

    The loss is half the squared error of a picture's 784 pixels, from 0 to 1; 20,000 pictures are trained on.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings of its own.
    """
    return RunConfig(
        recipe="fashion-autoencoder",
        model=ModelConfig("deep-autoencoder", widths=(784, 500, 250, 100, 30)),
        data=DataConfig("fashion-pictures", train_samples=20_000),
        loss=LossConfig("half-squared-error"),
        optimizer=choose(OPTIMIZERS, optimizer, call="fashion_autoencoder", option="optimizer"),
        epochs=3,
        batch_size=256,
        threads=1,  # comparisons of time a step are of one thread
    )
