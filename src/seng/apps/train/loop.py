"""The training loop: epochs of steps, an evaluation and a checkpoint after each."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...optimizer import SENG
from .checkpoint import BEGINNING, Position, restore_newest, write_checkpoint
from .data import epoch_batches
from .errors import DivergedError
from .evaluation import evaluate
from .folder import RunFolder, locked
from .meters import Evaluation, Meter
from .metrics import EndRecord, EpochRecord, MetricsFile, Record, StartRecord, StepRecord, Watcher
from .records import curvature_record, environment, merged
from .session import Session
from .signals import Interrupted, Signals
from .target import Target
from .timing import StepClock, Stopwatch, process_age

Batch = tuple[Tensor, Tensor]


def train(
    session: Session,
    folder: RunFolder,
    *,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    stop_after: int | None = None,
) -> Evaluation:
    """Train to the last epoch or the run's target, writing metrics and checkpoints.

    On a CPU a run that stopped anywhere and was resumed gives the same numbers, bit for bit, as one that did not.

    Args:
        session: the run's objects, fresh from ``build_session``.
        folder: where the run's files go.
        watchers: told of every step and record, beside the metrics file.
        resume: continue from the folder's newest checkpoint that can be read, or from the start if there is none.
        stop_after: stop when so many epochs of the run are done; None: all of them.

    Returns:
        The evaluation on the test split after the last epoch done.

    Raises:
        CheckpointError: the checkpoint cannot be used, a file cannot be written, or another process trains in the
            folder.
        DivergedError: the loss or the state is not finite; the last checkpoint stays.
        Interrupted: SIGINT or SIGTERM came; the step under way was finished and all state saved.
    """
    with locked(folder.path) if session.ranks.first else nullcontext():
        return _train(session, folder, watchers, resume, stop_after)


def _train(
    session: Session, folder: RunFolder, watchers: Sequence[Watcher], resume: bool, stop_after: int | None
) -> Evaluation:
    position = (restore_newest(folder.checkpoints, session) if resume else None) or BEGINNING
    last = min(session.config.epochs, stop_after or session.config.epochs)
    with Signals() as signals:
        run = Run(session, folder, watchers if session.ranks.first else (), signals, position)
        result = None
        while not run.ended and run.epoch < last:
            result = run.train_epoch()
        if run.ended:
            run.tell(EndRecord(run.epoch, run.step, run.saved.seconds, run.ended))
        result = result or evaluate(session, lambda: signals.received)
    if result is None:
        raise Interrupted(signals.received)
    return result


class Run:
    """What changes while a run goes on; its methods are the stages of the algorithm.

    Args:
        session: the run's objects.
        folder: where its files go; in the first process the metrics file is cut to the position's length.
        watchers: told of every step and record, beside the metrics file.
        signals: what asks the run to stop.
        start: where it begins.
    """

    def __init__(
        self, session: Session, folder: RunFolder, watchers: Sequence[Watcher], signals: Signals, start: Position
    ) -> None:
        self.session, self.folder, self.signals = session, folder, signals
        self.saved, self.steps_per_epoch = start, session.steps_per_epoch
        self.step, self.epoch, self.ended = start.step, start.epoch, start.ended
        self.stopwatch, self.clock = Stopwatch(start.seconds), StepClock(session.device)
        if isinstance(session.optimizer, SENG):
            session.optimizer.preconditioner.span = self.clock.part
        self.metrics = MetricsFile(folder.metrics, keep=start.metrics_bytes) if session.ranks.first else None
        self.watchers = [*watchers, *([self.metrics] if self.metrics else [])]
        self.meter = self._new_meter(start.sums if session.ranks.first else ())
        self.lr, self.logged_at = 0.0, start.step
        self.steps_here, self.samples_here, self.began = 0, 0, start.seconds  # since this process took it up
        self._advance(start.epoch * len(session.data.train) + sum(map(len, self._batches()[: self._done_in_epoch()])))

    # -- stages -------------------------------------------------------------------------------------------------

    def train_epoch(self) -> Evaluation:
        """Train to the end of the epoch, evaluate, tell and save."""
        self.began, self.samples_here = self.stopwatch.seconds, 0
        for _ in self.steps(self._batches()[self._done_in_epoch() :]):
            pass
        trained = self.meter.read(self.session.ranks)
        self._require_finite(trained.loss)
        seconds, speed = self.stopwatch.seconds, self._speed()
        with self.stopwatch.paused():
            tested = evaluate(self.session, lambda: self.signals.received)
        if tested is None:  # a signal came
            raise self.stop(self.signals.received)
        self._require_finite(tested.loss)
        self.epoch += 1
        record = EpochRecord(
            self.epoch, self.step, trained.loss, trained.accuracy, tested.loss, tested.accuracy, seconds, speed,
            tested.accuracy5,
        )  # fmt: skip
        self.tell(record)
        self.meter, self.ended = self._new_meter(), self._reason_to_end(record)
        self.save()
        return tested

    def steps(self, batches: Sequence[Tensor]) -> Generator[None, None, None]:
        """Take a step on each batch of sample numbers, and write what is due after it; yield then."""
        self.session.model.train()
        with closing(self._prefetched(batches)) as ahead:
            for batch, indices in zip(self.clock.waiting(ahead), batches, strict=True):
                loss = self.train_step(batch, len(indices))
                self._advance(len(indices))
                self.after_step(loss)
                yield

    def train_step(self, batch: Batch, samples: int) -> Tensor:
        """Take one optimizer step on this process's share of a batch; return the share's part of the mean loss."""
        session, scaler = self.session, self.session.scaler
        losses, parts = [], _deal(batch, session.config.accumulate)
        with self.clock.part("optimizer"):
            session.optimizer.zero_grad()
        for index, (inputs, targets) in enumerate(parts):
            share = len(inputs) / samples
            with self._synchronised(index == len(parts) - 1):
                with self.clock.part("forward"):
                    outputs = session.answer(session.forward, inputs)
                    loss = session.loss(outputs, targets)
                with self.clock.part("backward"), session.ranks.averaging():
                    # replicas take the mean of their gradients, hence the factor
                    scaler.scale(_times(loss, share * session.ranks.world)).backward()
            losses.append(_times(loss.detach(), share))
            self.meter.add(loss.detach(), outputs.detach(), targets)
        with self.clock.part("optimizer"):
            self._optimize()
        return sum(losses[1:], losses[0])

    def after_step(self, loss: Tensor) -> None:
        """Write what is due after a step; stop where a signal asked for it."""
        config = self.session.config
        self.step += 1
        if self.steps_here == 0:
            self._tell_start(loss)
        self.steps_here += 1
        last = self._done_in_epoch() == self.steps_per_epoch
        if self.step % config.log_every == 0:
            self._log(loss)
        if config.stats_every and (last or self.step % config.stats_every == 0):
            self._log_curvature(spectra=last)
        if asked := self._asked_to_stop():
            raise self.stop(asked)
        if config.checkpoint_every and self.step % config.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint. A collective call."""
        with self.stopwatch.paused():
            sums = tuple(self.meter.sums(self.session.ranks))
            size = self.metrics.sync() if self.metrics else 0
            self.saved = Position(self.step, self.epoch, self.stopwatch.seconds, sums, size, self.ended)
            write_checkpoint(self.folder.checkpoints, self.session, self.saved)

    def stop(self, signal: int) -> Interrupted:
        """Save, and return what is to be raised."""
        self.save()
        return Interrupted(signal)

    def tell(self, record: Record) -> None:
        """Hand a record to all who watch."""
        for watcher in self.watchers:
            watcher.logged(record)

    # -- details ------------------------------------------------------------------------------------------------

    def _optimize(self) -> None:
        session, clip = self.session, self.session.config.clip
        if clip is not None:
            session.scaler.unscale_(session.optimizer)
            nn.utils.clip_grad_norm_(session.model.parameters(), clip)
        self.lr = session.optimizer.param_groups[0]["lr"]
        session.scaler.step(session.optimizer)
        session.scaler.update()
        session.schedule.step()

    def _synchronised(self, wanted: bool) -> AbstractContextManager[object]:
        """Return the context in which backward averages gradients over the processes, or leaves them."""
        if wanted or self.session.ranks.world == 1:
            return nullcontext()
        return cast("DistributedDataParallel", self.session.forward).no_sync()

    def _batches(self) -> tuple[Tensor, ...]:
        config = self.session.config
        return epoch_batches(len(self.session.data.train), config.batch_size, config.seed, self.epoch)

    def _prefetched(self, batches: Sequence[Tensor]) -> Generator[Batch, None, None]:
        session = self.session
        own = [session.ranks.share(indices) for indices in batches]
        return session.batches(session.data.train, own, draw=session.config.seed * 1_000_003 + self.epoch)

    def _done_in_epoch(self) -> int:
        return self.step - self.epoch * self.steps_per_epoch

    def _new_meter(self, sums: Sequence[float] = ()) -> Meter:
        return Meter(self.session.device, self.session.classes, sums)

    def _advance(self, samples: int) -> None:
        self.samples_here += samples
        for watcher in self.watchers:
            watcher.advanced(samples)

    def _speed(self) -> float:
        return self.samples_here / (self.stopwatch.seconds - self.began)

    def _asked_to_stop(self) -> int:
        """Return the signal that asked for an end, or 0. Several processes agree on it at logged steps only."""
        if self.session.ranks.world > 1 and self.step % self.session.config.log_every:
            return 0
        return self.session.ranks.largest(self.signals.received)

    def _reason_to_end(self, record: EpochRecord) -> str:
        until = self.session.config.until
        if until is not None and Target.parse(until).reached(record):
            return until
        return "epochs" if self.epoch == self.session.config.epochs else ""

    def _tell_start(self, loss: Tensor) -> None:
        loss.item()  # waits for the device: the step is done
        seconds = self.stopwatch.seconds
        self.tell(StartRecord(self.epoch + 1, self.step, seconds, process_age(), environment(self.session)))

    def _log(self, loss: Tensor) -> None:
        ranks = self.session.ranks
        value, accuracy = ranks.sum(loss).item(), self.meter.read(ranks).accuracy
        self._require_finite(value)
        parts = self.clock.means(self.step - self.logged_at)
        self.logged_at = self.step
        seconds = self.stopwatch.seconds
        self.tell(StepRecord(self.epoch + 1, self.step, value, accuracy, self.lr, seconds, self._speed(), parts))

    def _log_curvature(self, *, spectra: bool) -> None:
        place = self.epoch + 1, self.step, self.stopwatch.seconds
        record = curvature_record(self.session.optimizer, *place, spectra=spectra)
        if record is not None:
            self.tell(merged(self.session.ranks.gather(record)))

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                "seng train",
                f"the run diverged by step {self.step}",
                expected="a finite loss",
                got=loss,
                fix="Lower --lr or raise --damping; the last checkpoint is kept",
            )


def _deal(batch: Batch, parts: int) -> list[Batch]:
    inputs, targets = batch
    return [batch] if parts == 1 else list(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True))


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor
