"""Errors inside DeepXDE and PINA at equal CPU seconds: natural gradients beside Adam followed by L-BFGS.

    python benchmarks/integrations.py deepxde [--seeds 3] [--seconds 12]
    python benchmarks/integrations.py pina

Half of the budget is Adam's (learning rate 0.001, the libraries' usual choice), the rest that of L-BFGS with strong
Wolfe conditions. Networks, points, weights and precision (float64) are the same for both; methods take turns. Results
go to ``results/integrations-LIBRARY.json`` after each run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from environment import save

os.environ.setdefault("DDE_BACKEND", "pytorch")
METHODS = ("natural", "adam, l-bfgs")
PACKAGES = {"deepxde": "deepxde", "pina": "pina-mathlab"}
Solve = Callable[[str, float], dict[str, float]]  # method, CPU seconds -> error and steps


def deepxde_problems() -> dict[str, Callable[[int], Solve]]:
    from integrations_deepxde import PROBLEMS

    return PROBLEMS


def pina_problems() -> dict[str, Callable[[int], Solve]]:
    from integrations_pina import PROBLEMS

    return PROBLEMS


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians by problem and method."""
    keys = list(dict.fromkeys((row["problem"], row["method"]) for row in rows))
    found = []
    for problem, method in keys:
        errors = [row["error"] for row in rows if (row["problem"], row["method"]) == (problem, method)]
        found.append(
            {"problem": problem, "method": method, "median": statistics.median(errors), "least": min(errors),
             "largest": max(errors), "seeds": len(errors)}
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=PACKAGES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    problems = deepxde_problems() if options.library == "deepxde" else pina_problems()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, build in problems.items():
            for method in METHODS:
                begun = time.process_time()
                result = build(seed)(method, options.seconds)
                row = {"problem": name, "method": method, "seed": seed, **result}
                rows.append({**row, "whole_seconds": round(time.process_time() - begun, 2)})
                print({key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()})
                package = PACKAGES[options.library]
                save(
                    f"integrations-{options.library}",
                    {"package": f"{package} {importlib.metadata.version(package)}", "budget": options.seconds,
                     "summary": summary(rows), "runs": rows},
                )  # fmt: skip


if __name__ == "__main__":
    main()
