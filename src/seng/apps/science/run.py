"""One loop for all problems and methods: step by step, until the budget of CPU time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .methods import Method
from .problem import Points, Problem

RECORDS = 200  # of a run, evenly over its budget, beside the first and the last step


@dataclass(frozen=True)
class Record:
    """A step of a run.

    Args:
        step: Steps done.
        seconds: CPU seconds of all threads that they took, drawing points included, judging the error left out.
        loss: Loss before the last of them, on its points.
        error: Relative L2 error after it.
        damping: Its damping, where the method has one.
        length: Its step length or learning rate.
    """

    step: int
    seconds: float
    loss: float
    error: float
    damping: float | None
    length: float


def run(
    problem: Problem, method: Method, net: nn.Module, seconds: float, seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Iterator[Record]:  # fmt: skip
    """Train a network on a problem and yield records as they come.

    Args:
        problem: What is solved.
        method: By which method.
        net: The network; its parameters are changed in place.
        seconds: Budget of CPU time. The step that overdraws it is the last.
        seed: Seed of the points and of the method's own draws.
        clock: CPU seconds of the process so far.

    Yields:
        The first step's record, about RECORDS evenly over the budget, and the last step's.
    """
    generator = torch.Generator().manual_seed(seed)
    spent, steps, due = 0.0, 0, 0.0
    started = clock()
    step = method.start(problem, net, seed)
    points = drawn(problem, method.draws, generator)
    while spent < seconds:
        if steps and method.every and steps % method.every == 0:
            points = drawn(problem, method.draws, generator)
        taken = step(points, spent / seconds)
        spent, steps = spent + clock() - started, steps + 1
        if spent >= due or spent >= seconds:
            yield Record(steps, spent, taken.loss, problem.error(net), taken.damping, taken.length)
            due = seconds * (int(RECORDS * spent / seconds) + 1) / RECORDS
        started = clock()


def drawn(problem: Problem, draws: int, generator: torch.Generator) -> Points:
    """Return the points of some draws together."""
    parts = [problem.draw(generator) for _ in range(draws)]
    return parts[0] if draws == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)
