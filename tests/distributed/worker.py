"""One rank of the tests of several: ``python worker.py RANK STORE OUT``. Writes what it saw to OUT."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from seng import SENG

WORLD = 2
STEPS = 4
SPOILED = 1  # the step whose batch is bad, on rank 1 alone
OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "refresh_every": 2, "damping": 0.2}


class Net(nn.Module):
    """Two layers that are covered and a parameter in another precision that is not."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
            self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.gain


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(6, 3, generator=generator, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().sum(1).mean()


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def replicated(rank: int) -> dict[str, Any]:
    """Train behind DistributedDataParallel, each rank on its own samples."""
    inner = Net()
    optimizer = SENG(inner, **OPTIONS)
    model, seen = DistributedDataParallel(inner), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *batch(rank, step)).backward()
        optimizer.step()
        seen.append(parameters(inner))
    strategy = type(optimizer.preconditioner._strategy).__name__
    return {"parameters": seen, "strategy": strategy, "traces": [s.trace for s in optimizer.stats().values()]}


def spoiled(rank: int) -> dict[str, Any]:
    """Train without a wrapper, so that a bad batch on one rank reaches the other only through the agreement."""
    model = Net()
    optimizer, seen = SENG(model, **OPTIONS), [parameters(model)]
    for step in range(STEPS):
        x, y = batch(rank, step)
        if rank == 1 and step == SPOILED:
            x[0, 0] = float("nan")
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
        seen.append(parameters(model))
    return {"parameters": seen, "counters": optimizer.preconditioner.counters, "steps": optimizer.preconditioner.steps}


def main(rank: int, store: str, out: str) -> None:
    """Run every scenario as one rank of WORLD."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    torch.save({"replicated": replicated(rank), "spoiled": spoiled(rank)}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
