"""The records of a run as TensorBoard's files."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import ConfigError
from .metrics import CurvatureRecord, EpochRecord, Record, StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

LAYER_NUMBERS = ("effective_dimension", "damping", "trace", "cosine")


class TensorBoardFiles:
    """Writes every number of a run's records; a context manager and a ``Watcher``.

    What a resumed run writes again takes the place of what its folder holds from the first step on.

    Args:
        folder: where the files go, as ``tensorboard --logdir`` takes it.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "seng train --tensorboard",
                "TensorBoard is not installed",
                expected="the package tensorboard",
                got=None,
                fix="Run pip install 'seng[tensorboard]', or leave the option out",
            ) from error
        self._folder, self._make = folder, SummaryWriter
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoardFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def advanced(self, samples: int) -> None:
        """Do nothing: only records are written."""

    def logged(self, record: Record) -> None:
        """Write the record's numbers under their names."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=record.step)
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record.step)


def numbers(record: Record) -> dict[str, float]:
    """Return the numbers of a record by their names in TensorBoard; those of layers end with the layer's."""
    found: dict[str, float | None] = {}
    if isinstance(record, StepRecord):
        found = {"step/loss": record.loss, "step/accuracy": record.accuracy, "step/lr": record.lr}
        found |= {"speed/samples_per_second": record.samples_per_second}
        found |= {f"time/{part}": seconds for part, seconds in record.parts.items()}
    elif isinstance(record, EpochRecord):
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_accuracy5")
        found = {f"epoch/{name}": getattr(record, name) for name in names}
    elif isinstance(record, CurvatureRecord):
        for layer, values in record.layers.items():
            found |= {f"{number}/{layer}": values[number] for number in LAYER_NUMBERS}
    return {name: value for name, value in found.items() if value is not None}
