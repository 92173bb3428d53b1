"""Peak memory and time of one direction of ``seng.func``, with more rows than fit: each case in a process of its own.

    python benchmarks/func_memory.py [--only CASE ...]

The residual is a Laplacian of a tanh network of three hidden layers; 220 wide it has 98,121 parameters. Rows are in
float32, K in float64. Memory is the largest resident size of the process, the interpreter and torch included, which
``base_gib`` gives alone. "exact" takes about an hour on a core of 2.5 GHz, n^2 p multiply-adds; "exact-narrow" has as
large a K and fewer parameters, "exact-few" as many parameters and fewer rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from environment import RESULTS, save
from torch import Tensor, nn

from seng.func import laplacian, natural_gradient

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """How many rows, how wide a network, and the solver's settings."""

    rows: int
    width: int
    settings: dict[str, Any]


CASES = {
    "gaussian": Case(20_000, 220, {"solver": "gaussian", "rank": 256}),
    "nystrom": Case(20_000, 220, {"solver": "nystrom", "rank": 256}),
    "exact-narrow": Case(20_000, 32, {"solver": "exact"}),
    "exact-few": Case(4_000, 220, {"solver": "exact"}),
    "exact": Case(20_000, 220, {"solver": "exact"}),
}


def resident() -> float:
    """Largest resident size so far, GiB (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def residual(u: nn.Module, x: Tensor) -> Tensor:
    return laplacian(u, x) + x.sin().prod()


def one(case: Case) -> dict[str, Any]:
    """Compute one direction here."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = (2, case.width, case.width, case.width, 1)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    net = nn.Sequential(*layers[:-1])
    parameters = sum(p.numel() for p in net.parameters())
    natural_gradient(residual, net, torch.rand(4, 2))  # imports what torch loads at its first use
    base = resident()
    x, started, cpu = torch.rand(case.rows, 2), time.perf_counter(), time.process_time()
    _, info = natural_gradient(residual, net, x, damping=1e-3, **case.settings)
    return {
        "rows": case.rows,
        "parameters": parameters,
        "settings": case.settings,
        "peak_gib": round(resident(), 3),
        "base_gib": round(base, 3),
        "rows_gib": round(4 * case.rows * parameters / GIB, 3),
        "gram_gib": round(8 * case.rows**2 / GIB, 3),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "solve_error": info.solve_error,
        "rungs": info.rungs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--here", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(one(CASES[options.here])))
        return
    path = RESULTS / "func_memory.json"
    results = json.loads(path.read_text())["cases"] if path.exists() else {}
    for case in options.only:
        command = [sys.executable, __file__, "--here", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[case] = json.loads(done.stdout.splitlines()[-1])
        print(case, results[case])
    save("func_memory", {"cases": results})


if __name__ == "__main__":
    main()
