"""The settings of a training run, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError
from .target import Target

LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "log_every": 1,
    "stats_every": 0,
    "checkpoint_every": 0,
    "keep": 1,
    "threads": 0,
}  # smallest values of whole numbers

OptimizerName = Literal["seng", "sgd", "adamw", "muon", "soap", "shampoo", "kron", "schedule-free", "kfac"]


@dataclass(frozen=True)
class ModelConfig:
    """A network: its name in ``models.MODELS`` and the sizes that are not decided by the data.

    Attributes:
        widths: widths of the layers, whose meaning is the model's; empty where its definition fixes them.
        heads: attention heads, of a transformer.
        dropout: probability of dropping a unit, where the model drops any.
    """

    name: str
    widths: tuple[int, ...] = ()
    heads: int = 0
    dropout: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """A data set: its name in ``data.DATASETS`` and how its samples are prepared.

    Attributes:
        data_dir: the folder that holds its files; None: SENG_DATA, or where the system keeps it.
        train_samples: use only the first so many training samples; None: all.
        augment: vary the training samples at random (what exactly is the data set's).
        size: height and width of a picture, or length of a text; 0: the data set's own.
        workers: threads or processes that prepare batches ahead of the loop; 0: the loop itself.
    """

    name: str
    data_dir: str | None = None
    train_samples: int | None = None
    augment: bool = False
    size: int = 0
    workers: int = 0


@dataclass(frozen=True)
class LossConfig:
    """A loss: its name in ``losses.LOSSES`` and its label smoothing, from 0 (none) to 1."""

    name: str = "cross-entropy"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class SengConfig:
    """The options of ``seng.SENG`` that a recipe may set; their meaning and defaults are the library's.

    Curvature is refreshed at every step before ``refresh_always_until``, then every ``refresh_every`` steps.
    The damping is multiplied by ``damping_decay`` every ``damping_decay_epochs`` epochs (smoothly, step by step).
    """

    base: str = "sgd"
    damping: float = 0.1
    damping_decay: float = 1.0
    damping_decay_epochs: float = 10.0
    damping_mode: str = "relative"
    scale: str = "auto"
    power: float = 0.5
    refresh_every: int = 10
    refresh_always_until: int = 0
    curvature_samples: int | float | None = None
    curvature_batch: str = "previous"
    trust: float | Literal["auto"] | None = "auto"
    ema: float = 0.0
    estimator: str = "auto"
    sketch: str = "uniform"
    sketch_size: int = 256
    rank: int = 16
    positions: str = "sum"
    explicit_limit: int | None = None
    reweight: bool = False
    tolerance: float = 0.0
    distributed: str = "auto"


@dataclass(frozen=True)
class KfacConfig:
    """The options of ``kfac.KFAC`` beside those of every optimizer; their meaning is described there."""

    damping: float = 0.03
    ema: float = 0.95
    refresh_every: int = 10
    decrease: float = 0.01


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer; ``seng`` and ``kfac`` are present exactly where ``name`` is the same.

    Attributes:
        momentum: of SGD and Muon; of optimizers like Adam, the weight of the old mean of gradients.
        aux_lr: learning rate of AdamW on the parameters that Muon (alone or behind SENG) and K-FAC leave; None: their
            own default.
        decay_norms: whether weight decay acts on biases and the parameters of norms too.
    """

    name: OptimizerName
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    seng: SengConfig | None = None
    kfac: KfacConfig | None = None
    aux_lr: float | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run: lr times a linear warm-up from 0, then a law of the epoch t.

    Attributes:
        name: "constant"; "polynomial", (1 - t/T)^power; or "cosine", (1 + cos(pi t/T)) / 2.
        power: exponent of the polynomial.
        warmup_epochs: length of the warm-up.
        horizon_epochs: T, where the rate reaches 0; None: the end of the run.
    """

    name: Literal["polynomial", "cosine", "constant"] = "polynomial"
    power: float = 1.0
    warmup_epochs: float = 0.0
    horizon_epochs: float | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; equal configs give equal runs on one machine.

    Attributes:
        batch_size: samples of an optimizer step, over all processes and micro-batches.
        accumulate: micro-batches that a step's samples are dealt into.
        clip: largest norm of the gradient, which is scaled down to it; None: no bound.
        precision: "float32", or autocast to "bf16" or "fp16" (with a GradScaler).
        until: end early when an epoch's metric reaches a value, as ``test_accuracy=0.97`` or ``test_loss=0.1``.
        checkpoint_every: steps between checkpoints inside an epoch; 0: only at the end of each epoch.
        keep: checkpoints kept, the latest first.
        stats_every: steps between records of the curvature's state; 0: none.
        compile: run the model through torch.compile.
        deterministic: allow only operations that give the same bits at every run (also on a GPU).
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
    accumulate: int = 1
    clip: float | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    until: str | None = None
    seed: int = 0
    log_every: int = 10
    stats_every: int = 50
    checkpoint_every: int = 0
    keep: int = 2
    device: str = "auto"
    compile: bool = False
    deterministic: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) < least:
                raise ConfigError(
                    "RunConfig", f"{name} is out of range", expected=f"{least} or more", got=value, fix=f"Raise {name}"
                )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(
                "RunConfig", "clip is out of range", expected="a number above 0, or none", got=self.clip, fix="Raise it"
            )
        if self.clip is not None and self.optimizer.seng is not None and self.optimizer.seng.reweight:
            raise ConfigError(
                "RunConfig", "clip and reweight exclude each other", expected="clip=none with reweight", got=self.clip,
                fix="Leave clip out, or set reweight=false: reweighted layers have no gradient to clip",
            )  # fmt: skip
        if self.until is not None:
            Target.parse(self.until)
        for name in ("seng", "kfac"):
            if (getattr(self.optimizer, name) is not None) != (self.optimizer.name == name):
                raise ConfigError(
                    "RunConfig",
                    "the optimizer and its settings do not match",
                    expected=f"the options of {name} with {name} and with no other",
                    got=self.optimizer.name,
                    fix="Choose the optimizer with --optimizer, which brings its own settings",
                )
