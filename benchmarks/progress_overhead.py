"""What following a run costs: the training loop with all that it shows and writes, beside a loop that only trains.

    python benchmarks/progress_overhead.py [--only digits]

Both take their steps in turn, one of each, in one process and one thread; compared are their CPU times over blocks of
ten steps (one record, one refresh). ``progress`` is the progress bar: its calls in the loop as a share of a step, and
its drawing, which a thread of its own does, as a share of a second. ``records`` is what else the loop does: sums of
losses and right answers, times of a step's parts, the metrics file, and the state of the curvature as often as the
recipe says (``curvature`` is that alone). Medians over blocks, with quartiles.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from environment import save
from rich.console import Console
from torch import Tensor

from seng.apps.recipes import build_recipe
from seng.apps.train import Session, build_session, create_run
from seng.apps.train.checkpoint import BEGINNING
from seng.apps.train.data import epoch_batches
from seng.apps.train.loop import Run
from seng.apps.train.metrics import Record, Watcher
from seng.apps.train.progress import ProgressBar
from seng.apps.train.records import curvature_record
from seng.apps.train.signals import Signals

BLOCK = 10  # steps
BLOCKS = {"digits": 60, "fashion-autoencoder": 30, "fashion-resnet": 6}


class Timed:
    """A watcher, and the CPU time of its calls."""

    def __init__(self, inner: Watcher) -> None:
        self._inner, self.seconds = inner, 0.0

    def advanced(self, samples: int) -> None:
        began = time.thread_time()
        self._inner.advanced(samples)
        self.seconds += time.thread_time() - began

    def logged(self, record: Record) -> None:
        began = time.thread_time()
        self._inner.logged(record)
        self.seconds += time.thread_time() - began


def bare(session: Session, batches: Sequence[Tensor]) -> Generator[None, None, None]:
    """Take a step on each batch and do nothing else."""
    session.model.train()
    for inputs, targets in session.batches(session.data.train, batches):
        session.optimizer.zero_grad()
        session.loss(session.model(inputs), targets).backward()
        session.optimizer.step()
        session.schedule.step()
        yield


def in_turn(loops: Sequence[Generator[None, None, None]]) -> list[float]:
    """Return the CPU seconds a step of each loop over a block."""
    seconds = [0.0] * len(loops)
    for _ in range(BLOCK):
        for number, loop in enumerate(loops):
            began = time.thread_time()
            next(loop)
            seconds[number] += time.thread_time() - began
    return [total / BLOCK for total in seconds]


def measure(recipe: str, blocks: int) -> dict[str, Any]:
    config = replace(build_recipe(recipe), threads=1, device="cpu")
    plain, followed = build_session(config), build_session(config)
    batches = batches_of(followed, BLOCK * (blocks + 1))
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as screen:
        folder = create_run(Path(place), config)
        console = Console(file=screen, force_terminal=True, width=120)
        with ProgressBar(config.epochs, len(followed.data.train), console) as bar:
            watched = Timed(bar)
            run = Run(followed, folder, [watched], Signals(), BEGINNING)
            loops = bare(plain, batches), run.steps(batches)
            times = [in_turn(loops) for _ in range(blocks + 1)][1:]  # the first block imports and plans
            drawing = drawing_share(bar)
    began = time.thread_time()
    curvature_record(followed.optimizer, 1, 1, 0.0, spectra=False)
    curvature = time.thread_time() - began
    step = median(without for without, _ in times)
    shares = [after / without - 1 for without, after in times]
    calls = watched.seconds / len(batches) / step
    return {
        "step_ms": 1e3 * step,
        "progress": calls + drawing,
        "records": median(shares) - calls,
        "quartiles": quantiles(shares, n=4)[::2],
        "curvature": curvature / config.stats_every / step,
        "blocks": blocks,
    }


def batches_of(session: Session, steps: int) -> list[Tensor]:
    """Return the batches of the first steps, from as many epochs as it takes."""
    config, found = session.config, []
    while len(found) < steps:
        epoch = len(found) // session.steps_per_epoch
        found += epoch_batches(len(session.data.train), config.batch_size, config.seed, epoch)
    return found[:steps]


def drawing_share(bar: ProgressBar) -> float:
    """Return the share of a second that drawing takes, at the rate of the bar."""
    seconds = []
    for _ in range(50):
        began = time.thread_time()
        bar._progress.refresh()
        seconds.append(time.thread_time() - began)
    return median(seconds) * bar._progress.live.refresh_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=BLOCKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for recipe in [arguments.only] if arguments.only else BLOCKS:
        results[recipe] = measure(recipe, BLOCKS[recipe])
        print(recipe, results[recipe], flush=True)
    if not arguments.only:
        print(save("progress_overhead", {"block": BLOCK, "recipes": results}))


if __name__ == "__main__":
    main()
