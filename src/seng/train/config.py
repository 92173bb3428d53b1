"""The settings of a training run, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

OptimizerName = Literal["seng", "sgd", "adamw"]


@dataclass(frozen=True)
class ModelConfig:
    """A network: its name in ``models.MODELS`` and its widths, whose meaning is the model's."""

    name: str
    widths: tuple[int, ...]


@dataclass(frozen=True)
class DataConfig:
    """A data set: its name in ``data.DATASETS`` and, for one read from files, the folder that holds it."""

    name: str
    data_dir: str | None = None


@dataclass(frozen=True)
class LossConfig:
    """A loss: its name in ``losses.LOSSES`` and its label smoothing, from 0 (none) to 1."""

    name: str = "cross-entropy"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class SengConfig:
    """The options of ``seng.SENG`` that a recipe may set; their meaning and defaults are the library's.

    Curvature is refreshed at every step before ``refresh_always_until``, then every ``refresh_every`` steps.
    """

    base: str = "sgd"
    damping: float = 0.1
    damping_mode: str = "relative"
    scale: str = "auto"
    power: float = 0.5
    refresh_every: int = 10
    refresh_always_until: int = 0
    curvature_batch: str = "previous"
    trust: float | None = 1.0
    ema: float = 0.0
    estimator: str = "auto"
    sketch: str = "uniform"
    sketch_size: int = 256
    rank: int = 16
    positions: str = "sum"


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer; ``seng`` is present exactly where ``name`` is "seng"."""

    name: OptimizerName
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seng: SengConfig | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run: "constant", or "polynomial" as lr (1 - t/T)^power."""

    name: Literal["polynomial", "constant"] = "polynomial"
    power: float = 1.0


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; equal configs give equal runs on one machine.

    Attributes:
        threads: CPU threads of torch, which decide the order of sums and so the last bits; 0: as many as torch takes.
            Small networks are fastest with one.
    """

    recipe: str
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    epochs: int
    batch_size: int
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: int = 0
    log_every: int = 10
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("log_every", 1), ("threads", 0)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(
                    "RunConfig", f"{name} is out of range", expected=f"{least} or more", got=value, fix=f"Raise {name}"
                )
        if (self.optimizer.seng is not None) != (self.optimizer.name == "seng"):
            raise ConfigError(
                "RunConfig",
                "the optimizer and its settings do not match",
                expected="SENG's options with seng and with no other",
                got=self.optimizer.name,
                fix="Choose the optimizer with --optimizer, which brings its own settings",
            )
