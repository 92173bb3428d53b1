"""Relative errors of all methods on the scientific problems at equal CPU seconds, each tuned over five settings.

    python benchmarks/science.py poisson-2d [--methods adam soap] [--seeds 5] [--defaults] [--most 200]

Settings are tried with seed 0; the best of each method then runs with seeds 1, 2, ... Trials that are recorded are not
run again, and no trial is begun once so many CPU seconds are spent: call it again until it says that none is left. With
``--defaults`` only the defaults run, with seed 0, and the natural gradient's solution is drawn for docs/science.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from environment import RESULTS, save

from seng.apps.science import METHODS, PROBLEMS, Record, run
from seng.apps.science.pictures import draw_solution

ASSETS = RESULTS.parent.parent / "docs" / "assets"
POINTS = 40  # of a curve that are kept


@dataclass(frozen=True)
class Trial:
    """One run: its settings are the differences from the method's defaults."""

    problem: str
    method: str
    settings: dict[str, Any]
    seed: int


def tried(problem: str, method: str) -> list[Trial]:
    """Return the trials that settings are chosen by."""
    return [Trial(problem, method, settings, 0) for settings in METHODS[method].tried]


def pending(problem: str, method: str, seeds: int, rows: list[dict[str, Any]]) -> Iterator[Trial]:
    """Yield what has not been run: the trials of all settings, then the best settings with other seeds."""
    done = {key(row): row["error"] for row in rows}
    tuning = tried(problem, method)
    todo = [trial for trial in tuning if key(asdict(trial)) not in done]
    yield from todo
    if not todo:
        best = min(tuning, key=lambda trial: done[key(asdict(trial))])
        for seed in range(1, seeds + 1):
            trial = Trial(problem, method, best.settings, seed)
            if key(asdict(trial)) not in done:
                yield trial


def defaults(problem: str, method: str, rows: list[dict[str, Any]]) -> Iterator[Trial]:
    """Yield the trial of a method's defaults, if it has not been run."""
    trial = Trial(problem, method, {}, 0)
    if key(asdict(trial)) not in {key(row) for row in rows}:
        yield trial


def key(row: dict[str, Any]) -> str:
    """Return what tells a trial from others."""
    return json.dumps([row[name] for name in ("problem", "method", "settings", "seed")], sort_keys=True)


def measure(trial: Trial, draw: bool) -> dict[str, Any]:
    """Run a trial for the problem's budget; draw its solution if asked."""
    problem = PROBLEMS[trial.problem]()
    net = problem.network(trial.seed)
    records = list(run(problem, METHODS[trial.method](**trial.settings), net, problem.seconds, trial.seed))
    last = records[-1]
    if draw:
        draw_solution(
            problem, net, ASSETS / f"science-{trial.problem}-solution.png", f"{trial.problem}, {trial.method}"
        )
    return {
        **asdict(trial), "budget": problem.seconds, "seconds": round(last.seconds, 2), "steps": last.step,
        "loss": last.loss, "error": last.error, "least_error": min(record.error for record in records),
        "curve": thinned(records),
    }  # fmt: skip


def thinned(records: list[Record]) -> list[list[float]]:
    """Return at most POINTS pairs of seconds and error, the first and the last among them."""
    kept = sorted({round(k * (len(records) - 1) / (POINTS - 1)) for k in range(POINTS)})
    return [[round(records[k].seconds, 3), float(f"{records[k].error:.3e}")] for k in kept]


def load() -> list[dict[str, Any]]:
    path = RESULTS / "science.json"
    return json.loads(path.read_text())["trials"] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--defaults", action="store_true", help="the defaults alone, with seed 0")
    parser.add_argument("--most", type=float, default=200.0, help="CPU seconds after which no trial is begun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()

    def left(method: str) -> Iterator[Trial]:
        rows = load()
        return (
            defaults(options.problem, method, rows)
            if options.defaults
            else pending(options.problem, method, options.seeds, rows)
        )

    for method in options.methods:
        while trial := next(left(method), None):
            if time.process_time() - started > options.most:
                print("more is left")
                return
            row = measure(trial, options.defaults and method == "natural")
            save("science", {"trials": [*load(), row]})
            print(f"{row['problem']} {method} {row['settings']} seed {row['seed']}: {row['error']:.2e}", flush=True)
    print("none is left")


if __name__ == "__main__":
    main()
