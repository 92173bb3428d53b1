"""What a trial trains, behind one interface: a step at a share of the budget, and an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..science import PROBLEMS
from ..science.methods import Method
from ..train.config import DataConfig, ModelConfig, RunConfig
from ..train.data import Dataset, Prefix, Split, epoch_batches
from ..train.evaluation import evaluate
from ..train.optimizers import build_optimizer
from ..train.session import build_session
from ..train.settings import override
from .optimizers import Entry
from .protocol import rate_factor
from .workloads import Workload

HELD_OUT = 10  # one of so many training samples is what tuning compares on


@dataclass(frozen=True)
class Score:
    """An evaluation: a loss (a relative error, of a scientific problem), and the share of right answers of classes."""

    loss: float
    accuracy: float | None = None


class Task(Protocol):
    """A network, its data and an optimizer, ready for the first step."""

    steps_per_epoch: int

    def step(self, share: float) -> float:
        """Take a step when ``share`` of the budget is spent; return the loss before it."""
        ...

    def evaluate(self) -> Score:
        """Judge the network as it is."""
        ...


@dataclass(frozen=True)
class Part:
    """Some samples of a split, one after the other."""

    whole: Split
    first: int
    samples: int

    def __len__(self) -> int:
        """Return how many there are."""
        return self.samples

    def batch(self, indices: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of some samples, in the order asked."""
        return self.whole.batch(indices + self.first, draw)


def held_out(data: Dataset) -> Dataset:
    """Return the training samples in two parts: those that tuning trains on, and the last ones, which it judges by.

    One sample between them is left out, since texts that are shifted reach into the next one.
    """
    judged = len(data.train) // HELD_OUT
    kept = len(data.train) - judged
    return Dataset(Prefix(data.train, kept - 1), Part(data.train, kept, judged))


class Network:
    """A network of ``seng train``.

    Args:
        config: Settings of the run.
        decays: Whether the learning rate falls to zero.
        tuning: Whether to train on a part of the training samples and judge by the rest, not by test samples.
    """

    def __init__(self, config: RunConfig, decays: bool, tuning: bool) -> None:
        session = build_session(config)
        self.session = replace(session, data=held_out(session.data)) if tuning else session
        self.steps_per_epoch, self._decays = self.session.steps_per_epoch, decays
        self._batches = self._ordered()
        self.session.model.train()

    def _ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        data, config, epoch = self.session.data.train, self.session.config, 0
        while True:
            for indices in epoch_batches(len(data), config.batch_size, config.seed, epoch):
                yield data.batch(indices, config.seed * 1_000_003 + epoch)
            epoch += 1

    def step(self, share: float) -> float:
        """Take a step on the next batch."""
        session = self.session
        _set_rates(session.optimizer, rate_factor(share, self._decays))
        inputs, targets = next(self._batches)
        session.optimizer.zero_grad()
        loss = session.loss(session.answer(session.forward, inputs), targets)
        loss.backward()
        session.optimizer.step()
        return loss.item()

    def evaluate(self) -> Score:
        """Judge by the test samples, or by those held out."""
        found = evaluate(self.session)
        assert found is not None  # nothing stops it
        return Score(found.loss, found.accuracy)


class Function:
    """A scientific problem under an optimizer; the error is the relative L2 error of the solution."""

    steps_per_epoch = 1

    def __init__(self, name: str, entry: Entry, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.problem, self._decays = PROBLEMS[name](), entry.decays
        self.net = self.problem.network(config.seed)
        self.optimizer = build_optimizer(self.net, config, 1)
        self._generator = torch.Generator().manual_seed(config.seed)

    def step(self, share: float) -> float:
        """Take a step on new points."""
        _set_rates(self.optimizer, rate_factor(share, self._decays))
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.net, self.problem.draw(self._generator))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def evaluate(self) -> Score:
        """Judge the solution."""
        return Score(self.problem.error(self.net))


class Solved:
    """A scientific problem under a method of ``seng science``, which finds its own step lengths."""

    steps_per_epoch = 1

    def __init__(self, name: str, method: Method, seed: int) -> None:
        self.problem, self.method = PROBLEMS[name](), method
        self.net = self.problem.network(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._step, self._steps = method.start(self.problem, self.net, seed), 0
        self._points = self.problem.draw(self._generator)

    def step(self, share: float) -> float:
        """Take a step, on new points where they are due."""
        if self._steps and self.method.every and self._steps % self.method.every == 0:
            self._points = self.problem.draw(self._generator)
        self._steps += 1
        return self._step(self._points, share).loss

    def evaluate(self) -> Score:
        """Judge the solution."""
        return Score(self.problem.error(self.net))


def build_task(workload: Workload, entry: Entry, values: Mapping[str, float], seed: int, tuning: bool) -> Task:
    """Return what a trial trains.

    Args:
        workload: The network and its data.
        entry: The optimizer.
        values: Its tuned settings.
        seed: Of the initial network, the order of samples and the optimizer's own draws.
        tuning: Whether to leave test samples alone.

    Raises:
        SengError: The optimizer cannot serve the network, or data are absent.
    """
    source = workload.source
    if isinstance(entry.config, Method):
        assert isinstance(source, str)
        return Solved(source, replace(entry.config, **values), seed)
    if isinstance(source, str):
        empty = ModelConfig("tanh network"), DataConfig(source)
        return Function(source, entry, _with(RunConfig(source, *empty, entry.config, 1, 1, seed=seed), values))
    return Network(_with(replace(source, optimizer=entry.config, seed=seed), values), entry.decays, tuning)


def _with(config: RunConfig, values: Mapping[str, float]) -> RunConfig:
    return override(config, {name: repr(value) for name, value in values.items()})


def _set_rates(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
