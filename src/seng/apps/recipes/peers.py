"""Settings of the optimizers that recipes have none for: they take the place of a recipe's AdamW."""

from __future__ import annotations

from ..train.config import KfacConfig, OptimizerConfig

PEERS: dict[str, OptimizerConfig] = {
    "muon": OptimizerConfig("muon", lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.0),
    "soap": OptimizerConfig("soap", lr=0.003, momentum=0.95, weight_decay=0.01),
    "shampoo": OptimizerConfig("shampoo", lr=0.003, weight_decay=0.01),
    "kron": OptimizerConfig("kron", lr=0.001, weight_decay=0.01),
    "schedule-free": OptimizerConfig("schedule-free", lr=0.003, weight_decay=0.01),
    "kfac": OptimizerConfig("kfac", lr=0.03, weight_decay=0.0, kfac=KfacConfig()),
}
