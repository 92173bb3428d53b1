"""Optimizers and learning-rate schedules, built from a run's settings."""

from __future__ import annotations

import dataclasses

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..errors import choose
from ..optimizer import SENG
from ..schedules import DenseThenSparse, PolynomialLR
from .config import OptimizerConfig, ScheduleConfig, SengConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, seed: int) -> Optimizer:
    """Return the optimizer that ``config`` names, over all of the model's parameters.

    Raises:
        SengError: an option is out of range, or no optimizer has that name.
    """
    return choose(_OPTIMIZERS, config.name, call="build_optimizer", option="optimizer")(model, config, seed)


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LRScheduler:
    """Return the schedule that ``config`` names, stepped once after every optimizer step."""
    if config.name == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    return PolynomialLR(optimizer, total_steps=total_steps, power=config.power)


def _seng(model: nn.Module, config: OptimizerConfig, seed: int) -> Optimizer:
    options = dataclasses.asdict(config.seng or SengConfig())
    dense_until = options.pop("refresh_always_until")
    if dense_until:
        options["refresh_every"] = DenseThenSparse(1, options["refresh_every"], dense_until)
    return SENG(
        model,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        seed=seed,
        **options,
    )


def _sgd(model: nn.Module, config: OptimizerConfig, seed: int) -> Optimizer:
    return SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _adamw(model: nn.Module, config: OptimizerConfig, seed: int) -> Optimizer:
    betas = (config.momentum, 0.999)
    return AdamW(model.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)


_OPTIMIZERS = {"seng": _seng, "sgd": _sgd, "adamw": _adamw}
