"""Rows of residuals with derivatives, by sweeps and by nested differentiation.

    python benchmarks/func_sweeps.py

One thread, float64, 500 points; tanh networks of three hidden layers. Each row of the result is one kind of network or
of derivative: seconds to make all rows by a sweep, the same by nested differentiation, and both divided by those of the
Laplacian of a Sequential; medians of interleaved runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from environment import save
from torch import Tensor, nn

from seng.func import laplacian, partial, taylor
from seng.func.derivatives import nested_differentiation
from seng.func.problem import problem_of, settings_of
from seng.func.trees import params_of

POINTS, WIDTH, RUNS = 500, 48, 7


def chain(inputs: int, outputs: int = 1) -> nn.Sequential:
    """Return a tanh network of three hidden layers."""
    sizes = (inputs, WIDTH, WIDTH, WIDTH, outputs)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


class Constrained(nn.Module):
    """Periodic features, and a factor that is 0 on the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain(4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([torch.sin(2 * math.pi * x), torch.cos(2 * math.pi * x)], dim=-1)
        return self.body(z) * (x * (1 - x)).prod()


class Skips(nn.Module):
    """Residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, WIDTH).double(), nn.Linear(WIDTH, 1).double()
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH).double() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for layer in self.hidden:
            h = h + torch.tanh(layer(h))
        return self.last(h)


class Gated(Skips):
    """Two encoders that every layer mixes. Source: Wang, Teng, Perdikaris (2021), "modified MLP"."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(2, WIDTH).double(), nn.Linear(2, WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        u, v, h = torch.tanh(self.u(x)), torch.tanh(self.v(x)), torch.tanh(self.first(x))
        for layer in self.hidden:
            gate = torch.tanh(layer(h))
            h = (1 - gate) * u + gate * v
        return self.last(h)


def second(u: Any, x: Tensor) -> Tensor:
    return laplacian(u, x).sum() + x.sum()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "sequential": (lambda: chain(2), second),
    "features and constraint": (Constrained, second),
    "skips": (Skips, second),
    "gated": (Gated, second),
    "three outputs": (lambda: chain(2, 3), second),
    "third order": (lambda: chain(2), lambda u, x: taylor(u, x, order=3).third.sum()),  # pyright: ignore
    "fourth order": (lambda: chain(2), lambda u, x: taylor(u, x, order=4).fourth.sum()),  # pyright: ignore
    "mixed of third order": (lambda: chain(2), lambda u, x: partial(u, x, 0, 0, 1)),
    "biharmonic": (lambda: chain(2), lambda u, x: laplacian(lambda y: laplacian(u, y), x)),
}


def timed(name: str, nested: bool) -> float:
    """Return the seconds of all rows."""
    torch.manual_seed(0)
    make, residual = CASES[name]
    call, net, x = "benchmark", make(), torch.rand(POINTS, 2, dtype=torch.float64)
    context = nested_differentiation if nested else nullcontext

    def chosen(u: Any, x: Tensor) -> Tensor:
        with context():
            return residual(u, x)

    problem = problem_of(chosen, params_of(net, call), x, settings_of(call, {}), 0, call)
    start = time.perf_counter()
    problem.linearise().rows.held  # noqa: B018
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    seconds: dict[tuple[str, bool], list[float]] = {}
    for run in range(RUNS + 1):
        for name in CASES:
            for nested in (False, True):
                if nested and run > 2:
                    continue  # slow and steady: three runs do
                if run or nested:
                    seconds.setdefault((name, nested), []).append(timed(name, nested))
                else:
                    timed(name, nested)
    unit = median(seconds["sequential", False])
    rows = {}
    for name in CASES:
        sweep, nested = median(seconds[name, False]), median(seconds[name, True])
        rows[name] = {
            "sweep_seconds": round(sweep, 4), "nested_seconds": round(nested, 4),
            "nested_by_sweep": round(nested / sweep, 2), "sweep_by_sequential": round(sweep / unit, 2),
        }  # fmt: skip
        print(name, rows[name])
    save("func_sweeps", {"points": POINTS, "width": WIDTH, "runs": RUNS, "cases": rows})


if __name__ == "__main__":
    main()
