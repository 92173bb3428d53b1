"""The live objects of a run, built from its settings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .config import RunConfig
from .data import Dataset, Split, load_dataset, prefetched, signature, steps_per_epoch
from .errors import ConfigError
from .losses import Loss, build_loss
from .meters import LEAST_CLASSES
from .models import build_model
from .optimizers import build_optimizer, build_schedule
from .ranks import ALONE, Ranks, choose_device
from .target import Target

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Session:
    """A run's settings and the objects made from them, ready for the first step.

    Attributes:
        model: the network itself, whose state is saved.
        forward: the network as training calls it: compiled or replicated where the run asks for it.
        scaler: scales losses for float16; without effect at other precisions.
        ranks: this process among those of the run.
    """

    config: RunConfig
    device: torch.device
    data: Dataset
    model: nn.Module
    forward: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: GradScaler
    ranks: Ranks = ALONE

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(len(self.data.train), self.config.batch_size)

    @property
    def classes(self) -> int | None:
        """Number of classes; None where the targets are no classes."""
        return signature(self.config.data).classes

    def batches(
        self, split: Split, batches: Sequence[Tensor], draw: int = 0
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Return batches of sample numbers one by one, on the device, prepared ahead; closing them ends the workers."""
        return prefetched(split, batches, draw=draw, workers=self.config.data.workers, device=self.device)

    def answer(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return the outputs of ``model`` or ``forward``, computed at the run's precision, in float32."""
        dtype = DTYPES.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            return network(inputs).float()


def build_session(config: RunConfig, ranks: Ranks = ALONE) -> Session:
    """Load the data and build model, optimizer and schedule.

    Seeds torch's global generators, and sets its threads and its determinism as the run asks.

    Args:
        config: the run's settings.
        ranks: this process among those of the run.

    Raises:
        SengError: a setting is out of range, or the data cannot be loaded.
    """
    device = choose_device(config.device, ranks.local)
    _require_metric(config)
    _set_up_torch(config)
    data = load_dataset(config.data)
    _require_samples(config, len(data.train), ranks)
    loss = build_loss(config.loss)
    torch.manual_seed(config.seed)
    model = build_model(config.model, signature(config.data)).to(device)
    steps = steps_per_epoch(len(data.train), config.batch_size)
    scaler = GradScaler(device.type, enabled=config.precision == "fp16")
    optimizer = build_optimizer(model, config, steps, **_live_options(config, scaler, ranks))
    schedule = build_schedule(optimizer, config.schedule, config.epochs, steps)
    forward = ranks.replicate(model, device)
    if config.compile:  # after the optimizer, which places hooks
        forward = cast("nn.Module", torch.compile(forward))
    if not ranks.first:  # other dropout than in the first process, which draws as one process alone would
        torch.manual_seed(config.seed * 1_000_003 + ranks.rank)
    return Session(config, device, data, model, forward, loss, optimizer, schedule, scaler, ranks)


def _live_options(config: RunConfig, scaler: GradScaler, ranks: Ranks) -> dict[str, Any]:
    """Return the options of SENG that are this process's affair and not the run's."""
    if config.optimizer.name != "seng":
        return {}
    scaled = {"grad_scaler": scaler} if scaler.is_enabled() else {}
    return scaled | ({"distributed": "none"} if ranks.world == 1 else {})  # a run of several goes on alone, too


def _set_up_torch(config: RunConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.precision == "fp16":  # the scaler may skip the first steps; the schedule counts them all the same
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`", UserWarning)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product runs
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _require_metric(config: RunConfig) -> None:
    """Refuse a target that this data set's records never have."""
    target = Target.parse(config.until) if config.until else None
    if target is None or not target.of_accuracy:
        return
    classes, least = signature(config.data).classes, LEAST_CLASSES if target.metric.endswith("5") else 1
    if classes is None or classes < least:
        raise ConfigError(
            "seng train",
            f"{config.data.name} has no {target.metric}",
            expected=f"a data set of {least} classes or more",
            got=classes,
            fix="Write --until test_loss=0.1, say",
        )


def _require_samples(config: RunConfig, samples: int, ranks: Ranks) -> None:
    """Refuse batches that cannot give each process and micro-batch a sample."""
    least, parts = samples // steps_per_epoch(samples, config.batch_size), ranks.world * config.accumulate
    if least < parts:
        raise ConfigError(
            "seng train",
            "the batch is too small to be dealt out",
            expected=f"a sample or more for each of {ranks.world} processes x {config.accumulate} micro-batches",
            got=least,
            fix="Raise --batch-size, or lower accumulate",
        )
