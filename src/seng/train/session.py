"""The live objects of a run, built from its settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .config import RunConfig
from .data import Dataset, load_dataset, signature, steps_per_epoch
from .errors import ConfigError
from .losses import Loss, build_loss
from .models import build_model
from .optimizers import build_optimizer, build_schedule


@dataclass(frozen=True)
class Session:
    """A run's settings and the objects made from them, ready for the first step."""

    config: RunConfig
    device: torch.device
    data: Dataset
    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: LRScheduler

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(len(self.data.train), self.config.batch_size)


def build_session(config: RunConfig) -> Session:
    """Load the data and build model, optimizer and schedule; seeds torch's global generators and sets its threads.

    Raises:
        SengError: a setting is out of range, or the data cannot be loaded.
    """
    device = _device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    data = load_dataset(config.data)
    loss = build_loss(config.loss)
    torch.manual_seed(config.seed)
    model = build_model(config.model, signature(config.data)).to(device)
    steps = steps_per_epoch(len(data.train), config.batch_size)
    optimizer = build_optimizer(model, config, steps)
    schedule = build_schedule(optimizer, config.schedule, config.epochs, steps)
    return Session(config, device, data, model, loss, optimizer, schedule)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "seng train",
            "the device cannot be used",
            expected="auto, cpu or cuda",
            got=name,
            fix="Leave --device out to take what is there",
        ) from error
    return device
