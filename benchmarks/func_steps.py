"""Steps of ``seng.func.NaturalGradient`` on a Laplacian residual, beside the machine's rate of matrix products.

    python benchmarks/func_steps.py

One thread, float64, 1,000 points, tanh networks of three hidden layers. ``rate`` is that of J J^T of the same shape by
one matrix product, interleaved with the steps; ``of_rate`` is n^2 p + n^3 / 3 multiply-adds over the seconds of a
step, divided by it. It may pass 1, since K is symmetric, and that of wide layers takes fewer operations.
``without_factors`` is the same with rows made by vectorised reverse passes. Medians of interleaved runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any
from unittest import mock

import torch
from environment import save
from torch import Tensor, nn

from seng.func import NaturalGradient, laplacian

POINTS, WIDTHS, RUNS = 1000, (68, 220), 3


def residual(u: Any, x: Tensor) -> Tensor:
    return laplacian(u, x) + x.sin().prod()


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def case(width: int) -> dict[str, float]:
    """Return the seconds of steps and of a matrix product for one network."""
    torch.manual_seed(0)
    sizes = (2, width, width, width, 1)
    net = nn.Sequential(*[part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())][:-1]).double()
    p = sum(parameter.numel() for parameter in net.parameters())
    x, j = torch.rand(POINTS, 2, dtype=torch.float64), torch.rand(POINTS, p, dtype=torch.float64)
    optimizer = NaturalGradient(net, residual)
    optimizer.step(x)
    found: dict[str, list[float]] = {"step": [], "product": [], "without": []}
    for _ in range(RUNS):
        found["step"].append(seconds(lambda: optimizer.step(x)))
        found["product"].append(seconds(lambda: j @ j.mT))
        with mock.patch("seng.func.rows.factors_of", return_value=None):
            found["without"].append(seconds(lambda: optimizer.step(x)))
    step, product, without = (median(found[name]) for name in ("step", "product", "without"))
    rate = POINTS**2 * p / product
    return {
        "parameters": p,
        "step_seconds": round(step, 3),
        "product_seconds": round(product, 3),
        "without_factors_seconds": round(without, 3),
        "of_rate": round((POINTS**2 * p + POINTS**3 / 3) / step / rate, 2),
        "without_by_step": round(without / step, 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    results = {}
    for width in WIDTHS:
        results[str(width)] = case(width)
        print(width, results[str(width)])
    save("func_steps", {"points": POINTS, "runs": RUNS, "widths": results})


if __name__ == "__main__":
    main()
