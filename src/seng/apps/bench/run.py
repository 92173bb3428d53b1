"""A suite: tuning trials, then runs with each optimizer's best values, in one process or several."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from .errors import BenchError
from .lines import Lines
from .optimizers import Entry
from .protocol import BudgetKind, Protocol, design
from .trial import Trial, run_trial
from .workloads import WORKLOADS, Suite

Tell = Callable[[dict[str, Any]], None]
Runner = Callable[[Sequence[Trial]], Iterable[dict[str, Any]]]
AHEAD = 2  # trials a process that wait for it


def run_suite(suite: Suite, protocol: Protocol, lines: Lines, *, jobs: int = 1, tell: Tell = lambda line: None) -> None:
    """Run every trial of a suite that is not in the file yet.

    A trial is written when it is done: what is interrupted or killed is run again, and nothing else.

    Args:
        suite: What is compared.
        protocol: The rules.
        lines: The file.
        jobs: Processes that run trials at the same time, each with one thread.
        tell: Told of each line that is written.

    Raises:
        BenchError: A worker process was killed.
        SengError: Data are absent.
    """

    def finish(trials: Iterable[Trial]) -> None:
        for line in run([trial for trial in trials if lines.find(trial.identity()) is None]):
            lines.add(line)
            tell(line)

    with _ended_by_sigterm(), _runner(jobs) as run:
        for workload in suite.workloads:
            served = [name for name in suite.optimizers if WORKLOADS[workload].entry(name) is not None]
            cells: list[tuple[str, str, BudgetKind]] = [
                (workload, name, kind) for kind in suite.budgets for name in served
            ]
            finish(trial for cell in cells for trial in tuning_trials(*cell, protocol))
            finish(trial for cell in cells for trial in evaluation_trials(*cell, protocol, lines))


def tuning_trials(workload: str, optimizer: str, budget: BudgetKind, protocol: Protocol) -> list[Trial]:
    """Return the trials among which an optimizer's values are chosen; as many for every optimizer."""
    entry = WORKLOADS[workload].entry(optimizer)
    assert entry is not None
    tried = enumerate(design(_defaults(entry), entry.ranges, protocol.trials))
    return [
        Trial(workload, optimizer, budget, "tuning", number, protocol.tuning_seed, values, protocol)
        for number, values in tried
    ]


def evaluation_trials(
    workload: str, optimizer: str, budget: BudgetKind, protocol: Protocol, lines: Lines
) -> list[Trial]:
    """Return the runs with the best values of the tuning trials; none where all of these diverged or failed."""
    tuned = tuning_trials(workload, optimizer, budget, protocol)
    found = [(trial, lines.find(trial.identity())) for trial in tuned]
    good = [(line["loss"], trial) for trial, line in found if line is not None and line["ended"] == "budget"]
    if not good:
        return []
    best = min(good, key=lambda pair: pair[0])[1]
    return [
        Trial(workload, optimizer, budget, "evaluation", best.number, seed, best.values, protocol)
        for seed in protocol.seeds
    ]


def _defaults(entry: Entry) -> dict[str, float]:
    """Return the default of each tuned setting, wherever in the settings it is."""
    groups = [entry.config, *(getattr(entry.config, name, None) for name in ("seng", "kfac"))]
    return {name: next(getattr(g, name) for g in groups if hasattr(g, name)) for name in entry.ranges}


@contextmanager
def _runner(jobs: int) -> Iterator[Runner]:
    """Give a function that runs trials and yields their lines as they end; leaving gives up those under way."""
    if jobs > 1:
        with _workers(jobs) as pool:
            yield lambda trials: _spread(pool, trials, AHEAD * jobs)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda trials: map(run_trial, trials)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise BenchError(
            "seng bench", "a worker process was killed", expected="workers that live to the end", got=str(error),
            fix="Lower --jobs if memory was short, and run the same command again: finished trials are kept",
        ) from error  # fmt: skip
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()


def _spread(pool: ProcessPoolExecutor, trials: Sequence[Trial], ahead: int) -> Iterator[dict[str, Any]]:
    """Yield lines as trials end, no more than ``ahead`` of them begun or waiting for a process."""
    waiting, left = set(), iter(trials)
    while waiting := waiting | {pool.submit(run_trial, trial) for trial in islice(left, ahead - len(waiting))}:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _begin_worker() -> None:
    """Use one thread, and leave interrupts to the main process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as an error would, so that workers are ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
