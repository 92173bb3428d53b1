"""Optimizers and learning-rate schedules, built from a run's settings."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ...errors import choose
from ...optimizer import SENG
from ...schedules import DenseThenSparse, Exponential
from .config import OptimizerConfig, RunConfig, ScheduleConfig, SengConfig
from .peers import PEERS
from .several import Several


def build_optimizer(model: nn.Module, config: RunConfig, steps_per_epoch: int, **options: Any) -> Optimizer:
    """Return the optimizer that ``config`` names, over all of the model's parameters.

    Args:
        model: the network.
        config: the run's settings.
        steps_per_epoch: steps in an epoch, the unit of schedules.
        **options: for SENG alone, what a live run knows (its GradScaler).

    Raises:
        SengError: an option is out of range, or no optimizer has that name.
    """
    wanted = config.optimizer
    if wanted.name == "seng":
        options = seng_options(wanted.seng or SengConfig(), steps_per_epoch) | {"seed": config.seed} | options
        optimizer: Optimizer = SENG(
            model,
            lr=wanted.lr,
            momentum=wanted.momentum,
            nesterov=wanted.nesterov,
            weight_decay=wanted.weight_decay,
            base=(wanted.seng or SengConfig()).base,
            base_options=None if wanted.aux_lr is None else {"aux_lr": wanted.aux_lr},
            **options,
        )
    else:
        optimizer = choose(_PLAIN, wanted.name, call="build_optimizer", option="optimizer")(model, wanted)
    if not wanted.decay_norms:
        spare_norms(optimizer)
    return optimizer


def seng_options(config: SengConfig, steps_per_epoch: int) -> dict[str, Any]:
    """Return the options of ``seng.SENG`` (and of ``seng.plan``) that the settings stand for."""
    options = dataclasses.asdict(config)
    del options["base"]
    dense_until = options.pop("refresh_always_until")
    if dense_until:
        options["refresh_every"] = DenseThenSparse(1, options["refresh_every"], dense_until)
    rate, epochs = options.pop("damping_decay"), options.pop("damping_decay_epochs")
    if rate != 1:
        options["damping"] = Exponential(options["damping"], rate, every=max(1, round(epochs * steps_per_epoch)))
    return options


def spare_norms(optimizer: Optimizer) -> None:
    """Take biases and the parameters of norms (all that have fewer than two axes) out of weight decay."""
    for part in _parts(optimizer):
        for group in list(part.param_groups):
            spared = [p for p in group["params"] if p.dim() < 2]
            group["params"] = [p for p in group["params"] if p.dim() >= 2]
            if spared:
                part.add_param_group({**group, "params": spared, "weight_decay": 0.0})
        part.param_groups[:] = [group for group in part.param_groups if group["params"]]
    optimizer.param_groups = [group for part in _parts(optimizer) for group in part.param_groups]


def _parts(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that own the groups."""
    if isinstance(optimizer, SENG):
        return optimizer.bases
    return optimizer.parts if isinstance(optimizer, Several) else [optimizer]


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """Return the schedule that ``config`` names, stepped once after every optimizer step."""
    return LambdaLR(optimizer, partial(rate_at, config=config, epochs=epochs, steps_per_epoch=steps_per_epoch))


def rate_at(step: int, config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (from 0) as a share of the rate that was asked for."""
    horizon = (config.horizon_epochs or epochs) * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = min(1.0, step / horizon)
    laws = {
        "constant": 1.0,
        "polynomial": (1.0 - done) ** config.power,
        "cosine": (1.0 + math.cos(math.pi * done)) / 2,
    }
    return warm * laws[config.name]


def _sgd(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    return SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _adamw(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    betas = (config.momentum, 0.999)
    return AdamW(model.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)


_PLAIN = {"sgd": _sgd, "adamw": _adamw, **PEERS}
