"""The paper's experiment on ImageNet."""

from __future__ import annotations

from dataclasses import replace

from ...errors import choose
from ..train.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from .paper import PAPER
from .variant import Variant

CURVATURE = replace(PAPER, damping=0.17, damping_decay=0.9, damping_decay_epochs=10.0, refresh_every=500)

VARIANTS = {
    # the paper's; it refreshes every 500 to 1000 steps and samples 128 to 512 rows a side: 500 and 256 here
    "seng": Variant(
        OptimizerConfig("seng", lr=0.145, weight_decay=1e-4, decay_norms=False, seng=CURVATURE),
        ScheduleConfig(power=6.0, warmup_epochs=5.0, horizon_epochs=60.0),
        epochs=41,
        batch_size=256,
    ),
    # He et al., Bag of Tricks for Image Classification, 2019: cosine after a warm-up, no decay on norms and biases
    "sgd": Variant(
        OptimizerConfig("sgd", lr=0.1, nesterov=True, weight_decay=1e-4, decay_norms=False),
        ScheduleConfig("cosine", warmup_epochs=5.0),
        epochs=120,
        batch_size=256,
    ),
    # Touvron et al., DeiT, 2021, which is for transformers: rate 0.0005 for 512 samples, decay 0.05
    "adamw": Variant(
        OptimizerConfig("adamw", lr=0.00025, weight_decay=0.05, decay_norms=False),
        ScheduleConfig("cosine", warmup_epochs=5.0),
        epochs=120,
        batch_size=256,
    ),
}


def imagenet_resnet50(optimizer: str = "seng") -> RunConfig:
    """Classify ImageNet-1k (1.3 million pictures of 1,000 classes) with ResNet-50.

    With SENG the settings are the paper's: 41 epochs under the rate 0.145 (1 - epoch/60)^6 after a warm-up, its 4 times
    64 samples a step being 256 over all processes.

    Args:
        optimizer: "seng", "sgd" or "adamw", each with settings and epochs of its own.
    """
    chosen = choose(VARIANTS, optimizer, call="imagenet_resnet50", option="optimizer")
    return RunConfig(
        recipe="imagenet-resnet50",
        model=ModelConfig("imagenet-resnet50", (256, 512, 1024, 2048)),
        data=DataConfig("imagenet", size=224, augment=True, workers=8),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=chosen.optimizer,
        schedule=chosen.schedule,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        log_every=50,
        stats_every=500,
        checkpoint_every=1000,
    )
