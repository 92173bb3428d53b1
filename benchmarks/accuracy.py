"""Relative errors of the natural gradient after a problem's CPU seconds, one thread, with the problem's settings.

    python benchmarks/accuracy.py [--problems poisson-2d burgers] [--seeds 3]

CPU seconds on cores that others share buy fewer steps: the number of steps is recorded beside each error.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from environment import save

from science import thinned
from seng.apps.science import METHODS, PROBLEMS, run

TARGETS = {"poisson-2d": 1e-8, "burgers": 1e-6}


def measure(name: str, seed: int) -> dict[str, Any]:
    problem = PROBLEMS[name]()
    settings = dict(problem.settings.get("natural", {}))
    records = list(run(problem, METHODS["natural"](**settings), problem.network(seed), problem.seconds, seed))
    return {
        "problem": name, "settings": settings, "seed": seed, "target": TARGETS[name], "error": records[-1].error,
        "loss": records[-1].loss, "steps": records[-1].step, "seconds": round(records[-1].seconds, 2),
        "curve": thinned(records),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.problems:
        for seed in range(options.seeds):
            rows.append(measure(name, seed))
            print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
            save("accuracy", {"runs": rows})


if __name__ == "__main__":
    main()
