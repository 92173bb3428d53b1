"""A character transformer on a text that ships with Python."""

from __future__ import annotations

from ...errors import choose
from ..train.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, SengConfig

OPTIMIZERS = {
    "seng": OptimizerConfig("seng", lr=0.03, weight_decay=0.0, seng=SengConfig(trust=1.0)),
    "sgd": OptimizerConfig("sgd", lr=0.1, weight_decay=0.0),
    "adamw": OptimizerConfig("adamw", lr=0.001, weight_decay=0.01),
}


def char_gpt(optimizer: str = "seng") -> RunConfig:
    """Predict the next character of Python's own documentation topics with a transformer of four blocks.

    The stream is 128 wide, the hidden layers 512, with 4 heads: 0.8 million parameters.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings of its own.
    """
    return RunConfig(
        recipe="char-gpt",
        model=ModelConfig("char-transformer", widths=(128, 512, 512, 512, 512), heads=4),
        data=DataConfig("python-topics", size=128, augment=True),
        optimizer=choose(OPTIMIZERS, optimizer, call="char_gpt", option="optimizer"),
        schedule=ScheduleConfig("cosine", warmup_epochs=0.25),
        epochs=5,
        batch_size=32,
        threads=1,
    )
