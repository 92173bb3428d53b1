"""The deep autoencoder on which second-order methods are compared."""

from __future__ import annotations

from ...errors import choose
from ..train.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, SengConfig
from .variant import Variant

# every step makes its curvature anew and weights its samples, which costs no more than holding it
EACH_STEP = SengConfig(
    damping=0.05,
    refresh_every=1,
    curvature_batch="current",
    estimator="exact",
    reweight=True,
    tolerance=0.2,
    trust=1.0,
    distributed="none",
)
VARIANTS = {
    "seng": Variant(
        OptimizerConfig("seng", lr=0.07, weight_decay=0.0, seng=EACH_STEP), ScheduleConfig(), epochs=3, batch_size=200
    ),
    "sgd": Variant(
        OptimizerConfig("sgd", lr=0.002, momentum=0.95, weight_decay=0.0),
        ScheduleConfig("constant"),
        epochs=3,
        batch_size=200,
    ),
    "adamw": Variant(
        OptimizerConfig("adamw", lr=0.002, weight_decay=0.01),
        ScheduleConfig(warmup_epochs=0.25),
        epochs=3,
        batch_size=200,
    ),
}


def fashion_autoencoder(optimizer: str = "seng") -> RunConfig:
    """Reconstruct Fashion-MNIST from 30 numbers a picture with a deep tanh autoencoder.

    The loss is half the squared error of a picture's 784 pixels, from 0 to 1; 20,000 pictures are trained on.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings of its own.
    """
    chosen = choose(VARIANTS, optimizer, call="fashion_autoencoder", option="optimizer")
    return RunConfig(
        recipe="fashion-autoencoder",
        model=ModelConfig("deep-autoencoder", widths=(784, 500, 250, 100, 30)),
        data=DataConfig("fashion-pictures", train_samples=20_000),
        loss=LossConfig("half-squared-error"),
        optimizer=chosen.optimizer,
        schedule=chosen.schedule,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        threads=1,  # comparisons of time a step are of one thread
    )
