"""What is trained. One line enrols a workload; a suite names workloads, optimizers and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..recipes import build_recipe
from ..train.config import DataConfig, LossConfig, ModelConfig, RunConfig
from ..train.settings import override
from .optimizers import ADAMW, NATURAL, OPTIMIZERS, SUMMED_SGD, Entry
from .protocol import BUDGETS, BudgetKind

LIMIT = 0.85  # accuracy that large batches are to reach


@dataclass(frozen=True)
class Workload:
    """A network and its data, or a scientific problem.

    Args:
        source: The settings of a run, whose optimizer is replaced; or the name of a problem of ``seng science``.
        steps: The budget of runs of equal steps.
        seconds: The budget of runs of equal CPU seconds.
        light: Whether it is among those of ``--quick``.
        accuracy: Share of right answers that is the target; None: the loss that the best first-order method ends at.
        own: Entries that stand in for those of the table, by the optimizer's name.
    """

    source: RunConfig | str
    steps: int
    seconds: float
    light: bool = False
    accuracy: float | None = None
    own: Mapping[str, Entry] = field(default_factory=dict)

    def entry(self, optimizer: str) -> Entry | None:
        """Return an optimizer's entry, or None where it cannot serve this workload."""
        found = self.own.get(optimizer, OPTIMIZERS[optimizer])
        return None if found.captures and isinstance(self.source, str) else found


def _recipe(name: str, **changes: str) -> RunConfig:
    return override(build_recipe(name, "adamw"), {"threads": "1", "device": "cpu", **changes})


def _vision_transformer() -> RunConfig:
    model = ModelConfig("vision-transformer", (64, 128, 128, 128), heads=4)
    return RunConfig("fashion-vit", model, DataConfig("fashion-mnist"), ADAMW, 1, 128, threads=1, device="cpu")


def _table() -> RunConfig:
    loss, model = LossConfig("half-squared-error"), ModelConfig("perceptron", (128, 128))
    return RunConfig("diamonds", model, DataConfig("diamonds"), ADAMW, 1, 256, loss, threads=1, device="cpu")


def _large(batch_size: int, steps: int) -> Workload:
    """Return a perceptron on Fashion-MNIST whose steps take many samples."""
    model, data = ModelConfig("perceptron", (256, 128)), DataConfig("fashion-mnist")
    config = RunConfig(f"fashion-{batch_size}", model, data, ADAMW, 1, batch_size, threads=1, device="cpu")
    return Workload(config, steps, seconds=60, accuracy=LIMIT)


GPT = {"model.widths": "96,384,384", "data.size": "64"}

WORKLOADS: dict[str, Workload] = {
    "digits": Workload(_recipe("digits"), steps=200, seconds=4, light=True),
    "fashion-resnet": Workload(_recipe("fashion-resnet"), steps=234, seconds=60),
    "fashion-autoencoder": Workload(
        _recipe("fashion-autoencoder", batch_size="256"), steps=234, seconds=24, own={"sgd": SUMMED_SGD}
    ),
    "char-gpt": Workload(_recipe("char-gpt", **GPT), steps=300, seconds=30),
    "fashion-vit": Workload(_vision_transformer(), steps=300, seconds=40),
    "diamonds": Workload(_table(), steps=600, seconds=5, light=True),
    "poisson-2d": Workload("poisson-2d", steps=600, seconds=20, light=True, own={"seng": NATURAL, "sgd": SUMMED_SGD}),
    "fashion-2048": _large(2_048, steps=600),
    "fashion-8192": _large(8_192, steps=240),
    "fashion-60000": _large(60_000, steps=100),
}


@dataclass(frozen=True)
class Suite:
    """A comparison.

    Args:
        workloads: Names of the workloads.
        optimizers: Names of the optimizers.
        budgets: Kinds of budgets.
    """

    workloads: tuple[str, ...]
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    budgets: tuple[BudgetKind, ...] = BUDGETS


LARGE = ("fashion-2048", "fashion-8192", "fashion-60000")
SUITES: dict[str, Suite] = {
    "core": Suite(tuple(name for name in WORKLOADS if name not in LARGE)),
    "large-batch": Suite(LARGE, ("sgd", "adamw", "muon", "kfac", "seng", "seng-muon"), ("steps",)),
    **{name: Suite((name,)) for name in WORKLOADS},
}
