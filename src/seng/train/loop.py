"""The training loop: epochs of steps, an evaluation and a checkpoint after each."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checkpoint import Position, load_checkpoint, save_checkpoint
from .data import Split, epoch_batches, in_order
from .errors import DivergedError
from .folder import RunFolder
from .losses import Loss
from .metrics import EpochRecord, MetricsFile, Record, StepRecord, Watcher, trim_metrics
from .session import Session

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and share of right answers over a split."""

    loss: float
    accuracy: float


def train(
    session: Session,
    folder: RunFolder,
    *,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    stop_after: int | None = None,
) -> Evaluation:
    """Train to the last epoch, writing metrics and a checkpoint after each epoch.

    On a CPU a run that stopped and was resumed gives the same numbers, bit for bit, as one that did not.

    Args:
        session: the run's objects, fresh from ``build_session``.
        folder: where the run's files go.
        watchers: told of every step and record, beside the metrics file.
        resume: continue from the folder's checkpoint, or from the start if no epoch was finished.
        stop_after: stop when so many epochs of the run are done; None: all of them.

    Returns:
        The evaluation on the test split after the last epoch done.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DivergedError: the loss is not finite; the last checkpoint stays.
    """
    position = Position(step=0, seconds=0.0)
    if resume and folder.checkpoint.exists():
        position = load_checkpoint(folder.checkpoint, session)
    trim_metrics(folder.metrics, position.step)
    watchers = (*watchers, MetricsFile(folder.metrics))
    first = position.step // session.steps_per_epoch
    last = min(session.config.epochs, stop_after or session.config.epochs)
    for watcher in watchers:
        watcher.advanced(first * len(session.data.train))
    evaluation = None
    for epoch in range(first, last):
        position, evaluation = _run_epoch(session, epoch, position, watchers)
        save_checkpoint(folder.checkpoint, session, position)
    return evaluation or evaluate(session.model, session.data.test, session.loss, session.device)


def _run_epoch(
    session: Session, epoch: int, start: Position, watchers: Sequence[Watcher]
) -> tuple[Position, Evaluation]:
    """Train for one epoch, evaluate, and tell the watchers."""
    meter = _Meter(session.device, start.seconds)
    step = start.step
    session.model.train()
    config = session.config
    for indices in epoch_batches(len(session.data.train), config.batch_size, config.seed, epoch):
        lr = session.optimizer.param_groups[0]["lr"]
        loss = _train_step(session, indices, meter)
        step += 1
        for watcher in watchers:
            watcher.advanced(len(indices))
        if step % config.log_every == 0:
            value = _finite(loss.item(), step)
            record = StepRecord(epoch + 1, step, value, meter.accuracy(), lr, meter.seconds(), meter.speed())
            _tell(watchers, record)
    train_loss, train_accuracy = _finite(meter.loss(), step), meter.accuracy()
    seconds, speed = meter.seconds(), meter.speed()
    tested = evaluate(session.model, session.data.test, session.loss, session.device)
    _finite(tested.loss, step)
    _tell(
        watchers,
        EpochRecord(epoch + 1, step, train_loss, train_accuracy, tested.loss, tested.accuracy, seconds, speed),
    )
    return Position(step, seconds), tested


def _train_step(session: Session, indices: Tensor, meter: _Meter) -> Tensor:
    inputs, targets = (part.to(session.device) for part in session.data.train.batch(indices))
    session.optimizer.zero_grad()
    outputs = session.model(inputs)
    loss = session.loss(outputs, targets)
    loss.backward()
    session.optimizer.step()
    session.schedule.step()
    meter.add(loss.detach(), outputs.detach(), targets)
    return loss.detach()


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, loss: Loss, device: torch.device) -> Evaluation:
    """Return mean loss and accuracy of a model in evaluation mode; its own mode is restored."""
    was_training = model.training
    model.eval()
    meter = _Meter(device)
    for inputs, targets in in_order(split, EVALUATION_BATCH):
        outputs, targets = model(inputs.to(device)), targets.to(device)
        meter.add(loss(outputs, targets), outputs, targets)
    model.train(was_training)
    return Evaluation(meter.loss(), meter.accuracy())


class _Meter:
    """Sums loss, right answers and samples on the device (reading them waits for it), and keeps the time."""

    def __init__(self, device: torch.device, seconds_before: float = 0.0) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._samples = 0
        self._began, self._before = time.perf_counter(), seconds_before

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        right = (outputs.argmax(1) == targets).sum()
        self._sums += torch.stack((loss.double() * len(targets), right.double()))
        self._samples += len(targets)

    def loss(self) -> float:
        return self._sums[0].item() / self._samples

    def accuracy(self) -> float:
        return self._sums[1].item() / self._samples

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def speed(self) -> float:
        return self._samples / (time.perf_counter() - self._began)


def _tell(watchers: Sequence[Watcher], record: Record) -> None:
    for watcher in watchers:
        watcher.logged(record)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(
            "seng train",
            f"the run diverged by step {step}",
            expected="a finite loss",
            got=loss,
            fix="Lower --lr or raise --damping; the last checkpoint is kept",
        )
    return loss
