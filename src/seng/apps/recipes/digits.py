"""The default recipe: real data that needs no download, trained in seconds."""

from __future__ import annotations

from ...errors import choose
from ..train.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, SengConfig

OPTIMIZERS = {
    "seng": OptimizerConfig("seng", lr=0.1, seng=SengConfig(trust=1.0)),
    "sgd": OptimizerConfig("sgd", lr=0.3),
    "adamw": OptimizerConfig("adamw", lr=0.03, weight_decay=0.01),
}


def digits(optimizer: str = "seng") -> RunConfig:
    """Classify scikit-learn's handwritten digits (1,797 of 8 x 8 pixels) with a small convolutional network.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings of its own.
    """
    return RunConfig(
        recipe="digits",
        model=ModelConfig("small-cnn", widths=(16, 32)),
        data=DataConfig("digits"),
        optimizer=choose(OPTIMIZERS, optimizer, call="digits", option="optimizer"),
        epochs=20,
        batch_size=64,
        threads=1,  # the network is tiny: a second thread costs more than it brings
    )
