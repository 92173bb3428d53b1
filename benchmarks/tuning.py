"""Search the settings of SGD, AdamW and SENG alike; then run the best on test data.

    python benchmarks/tuning.py autoencoder|resnet|char-gpt [search] [final]

A search trains on part of the training data and compares losses on other training samples: test data are seen by final
runs alone. Each method has as many trials as any other: its learning rates under every law, then, at the best law,
other values of one setting of its own at the best rate and its neighbours; where a task says so, the three best are
compared by their means over more seeds. One thread. Results are added to
results/tuning.json trial by trial, and a trial that is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from environment import RESULTS, save
from torch import Tensor

from seng.apps.recipes import build_recipe
from seng.apps.train import build_session, create_run, train
from seng.apps.train.config import RunConfig
from seng.apps.train.data import Dataset, Prefix, Split, load_dataset
from seng.apps.train.errors import DivergedError
from seng.apps.train.session import Session
from seng.apps.train.settings import override

Settings = dict[str, str]

WARM_UP = {"schedule.warmup_epochs": "0.25"}
LINEAR = {"schedule.name": "polynomial", "schedule.power": "1"}
LAWS: dict[str, Settings] = {
    "constant": {"schedule.name": "constant"},
    "linear": LINEAR,
    "linear, warm-up": LINEAR | WARM_UP,
    "cosine, warm-up": {"schedule.name": "cosine"} | WARM_UP,
}
OF_256 = {"batch_size": "256"}  # the recipe's batches are smaller
AS_ONE_SYSTEM = {
    "refresh_every": "1",
    "curvature_batch": "current",
    "estimator": "exact",
    "reweight": "true",
    "distributed": "none",
}


@dataclass(frozen=True)
class Method:
    """An optimizer with what is fixed, its learning rates, and values of one more setting, the first one at first."""

    optimizer: str
    rates: tuple[float, ...]
    fixed: Settings = field(default_factory=dict)
    other: tuple[str, tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Task:
    """A recipe, the size of its search, and the methods.

    Attributes:
        samples: training samples of a search.
        held_out: how many training samples, the last ones, the search compares on.
        epochs: of a search and of a final run.
        laws: of the learning rate that are tried.
        seeds: of final runs.
        again: more seeds for the best of a search, which begins with seed 0.
    """

    recipe: str
    samples: int
    held_out: int
    epochs: tuple[int, int]
    laws: tuple[str, ...]
    methods: Mapping[str, Method]
    final: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = (1,)
    again: tuple[int, ...] = ()


AUTOENCODER = {
    "SGD": Method("sgd", (0.0005, 0.001, 0.002, 0.003, 0.005), OF_256, other=("momentum", (0.9, 0.8, 0.95))),
    "AdamW": Method("adamw", (0.0005, 0.001, 0.0015, 0.002, 0.003), OF_256, other=("momentum", (0.9, 0.8, 0.95))),
    "SENG, power 1, AdamW": Method(
        "seng",
        (0.0005, 0.001, 0.0015, 0.002, 0.003),
        AS_ONE_SYSTEM | OF_256 | {"optimizer.seng.power": "1", "base": "adamw"},
        other=("damping", (0.2, 0.1, 0.3)),
    ),
    "SENG": Method(
        "seng",
        (0.03, 0.05, 0.07, 0.1, 0.15),
        AS_ONE_SYSTEM | OF_256 | {"tolerance": "0.03"},
        other=("damping", (0.1, 0.03, 0.05)),
    ),
}
TASKS = {
    "autoencoder": Task(
        "fashion-autoencoder",
        samples=20_000,
        held_out=10_000,
        epochs=(3, 3),
        laws=("constant", "linear", "linear, warm-up"),
        methods=AUTOENCODER,
        seeds=(1, 2, 3),
        again=(4, 5),
    ),
    "resnet": Task(
        "fashion-resnet",
        samples=20_000,
        held_out=10_000,
        epochs=(1, 3),
        laws=("linear",),
        methods={
            "SGD": Method("sgd", (0.01, 0.03, 0.1, 0.3, 1.0)),
            "AdamW": Method("adamw", (0.001, 0.003, 0.01, 0.03, 0.1)),
            "SENG": Method("seng", (0.01, 0.03, 0.1, 0.3, 1.0)),
        },
        final={"data.train_samples": "none"},
    ),
    "char-gpt": Task(
        "char-gpt",
        samples=2_900,
        held_out=360,
        epochs=(1, 5),
        laws=("cosine, warm-up",),
        methods={
            "SGD": Method("sgd", (0.03, 0.1, 0.3, 1.0)),
            "AdamW": Method("adamw", (0.0003, 0.001, 0.003, 0.01)),
            "SENG": Method("seng", (0.01, 0.03, 0.1, 0.3)),
            "Muon": Method(  # damping without end leaves the gradient to the base
                "seng", (0.01, 0.02, 0.05, 0.1), {"base": "muon", "optimizer.seng.power": "1", "damping": "1e6"}
            ),
            "SENG, Muon": Method(
                "seng", (0.01, 0.02, 0.05, 0.1), {"base": "muon", "optimizer.seng.power": "1", "damping": "0.3"}
            ),
        },
        final={"data.train_samples": "none"},
    ),
}


@dataclass(frozen=True)
class Part:
    """Some samples of a split, one after the other."""

    whole: Split
    first: int
    samples: int

    def __len__(self) -> int:
        return self.samples

    def batch(self, indices: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
        return self.whole.batch(indices + self.first, draw)


class Record:
    """The results of a task so far, in results/tuning.json."""

    def __init__(self, task: str) -> None:
        self.path, self.task = RESULTS / "tuning.json", task
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows: dict[str, list[dict[str, Any]]] = kept.get(task, {})

    def find(self, stage: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the row of a trial that was run before."""
        rows = self.rows.setdefault(stage, [])
        return next((row for row in rows if key.items() <= row.items()), None)

    def add(self, stage: str, row: dict[str, Any]) -> None:
        """Write a row beside what other tasks wrote meanwhile."""
        self.rows.setdefault(stage, []).append(row)
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        kept.pop("environment", None)
        save("tuning", kept | {self.task: self.rows})
        print(stage, row, flush=True)


def configure(task: Task, name: str, law: str, rate: float, other: float | None, extra: Settings) -> RunConfig:
    """Return a recipe's settings with those of a trial."""
    method = task.methods[name]
    changes = {"lr": str(rate), "threads": "1", "stats_every": "0"} | LAWS[law] | method.fixed | extra
    if method.other is not None and other is not None:
        changes[method.other[0]] = str(other)
    return override(build_recipe(task.recipe, method.optimizer), changes)


def run(session: Session) -> dict[str, Any]:
    """Train, and return the last evaluation; None for losses of runs that diverged."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = train(session, create_run(Path(folder, "run"), session.config))
        except DivergedError:
            return {"loss": None}
    seconds = time.process_time() - start
    result = {"loss": round(found.loss, 4), "cpu_seconds": round(seconds, 1)}
    return result if found.accuracy is None else result | {"accuracy": round(found.accuracy, 4)}


def trial(
    record: Record, task: Task, name: str, law: str, rate: float, other: float | None, seed: int = 0
) -> dict[str, Any]:
    """Run one trial of a search, or find it among those that were run."""
    method = task.methods[name]
    key: dict[str, Any] = {"method": name, "law": law, "lr": rate, "seed": seed}
    if method.other is not None:
        key[method.other[0]] = other
    known = record.find("search", key)
    if known is None:
        size = {"data.train_samples": str(task.samples), "epochs": str(task.epochs[0]), "seed": str(seed)}
        config = configure(task, name, law, rate, other, size)
        session = build_session(config)
        whole = load_dataset(replace(config.data, train_samples=None)).train
        held_out = Part(whole, len(whole) - task.held_out, task.held_out)
        session = replace(session, data=Dataset(Prefix(whole, task.samples), held_out))
        known = key | run(session)
        record.add("search", known)
    return known


def order(row: dict[str, Any]) -> float:
    """Return what trials are compared by."""
    return float("inf") if row["loss"] is None else row["loss"]


def search(record: Record, task: Task, name: str) -> dict[str, Any]:
    """Return the best trial of a method."""
    method = task.methods[name]
    first, *others = method.other[1] if method.other else (None,)
    tried = [trial(record, task, name, law, rate, first) for law, rate in itertools.product(task.laws, method.rates)]
    best = min(tried, key=order)
    place = method.rates.index(best["lr"])
    near = method.rates[max(0, min(place - 1, len(method.rates) - 3)) :][:3]
    tried += [trial(record, task, name, best["law"], rate, value) for value, rate in itertools.product(others, near)]
    finalists = sorted(tried, key=order)[: 3 if task.again else 1]

    def over_seeds(row: dict[str, Any]) -> float:
        return mean([order(row), *(order(repeat(record, task, row, seed)) for seed in task.again)])

    return min(finalists, key=over_seeds)


def repeat(record: Record, task: Task, row: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run a trial with another seed."""
    name = row["method"]
    of_its_own = task.methods[name].other
    return trial(record, task, name, row["law"], row["lr"], row[of_its_own[0]] if of_its_own else None, seed)


def chosen(task: Task, best: dict[str, Any], seed: int) -> RunConfig:
    """Return the settings of a final run."""
    method = task.methods[best["method"]]
    extra = {"epochs": str(task.epochs[1]), "seed": str(seed)} | task.final
    other = best[method.other[0]] if method.other else None
    return configure(task, best["method"], best["law"], best["lr"], other, extra)


def finish(record: Record, task: Task, best: dict[str, Any]) -> None:
    """Run the best settings on the whole task with seeds that the search has not seen; compare on test data."""
    settings = {key: value for key, value in best.items() if key not in ("loss", "seed", "cpu_seconds", "accuracy")}
    for seed in task.seeds:
        if record.find("final", settings | {"seed": seed}) is None:
            record.add("final", settings | {"seed": seed} | run(build_session(chosen(task, best, seed))))


def main() -> None:
    """Run the stages of a task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("stages", nargs="*", help="search, final; both by default")
    parser.add_argument("--method", help="only this one")
    chosen_by_user = parser.parse_args()
    torch.set_num_threads(1)
    task, record = TASKS[chosen_by_user.task], Record(chosen_by_user.task)
    stages = chosen_by_user.stages or ["search", "final"]
    names = [name for name in task.methods if chosen_by_user.method in (None, name)]
    best = {name: search(record, task, name) for name in names}
    if "final" in stages:
        for row in best.values():
            finish(record, task, row)


if __name__ == "__main__":
    main()
