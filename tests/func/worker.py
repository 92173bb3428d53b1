"""One rank of several: ``python worker.py RANK WORLD STORE OUT``. Writes what it computed to OUT.

The tests import ``scenarios`` and run it in one process too, with the whole batch.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from seng.func import NaturalGradient, SingularError, natural_gradient

DTYPE, N, STEPS = torch.float64, 11, 3
Batch = tuple[Tensor, Tensor]


def network(outputs: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, outputs)).to(DTYPE)


def whole(step: int = 0) -> dict[str, Batch]:
    generator = torch.Generator().manual_seed(step)
    x, edge = (torch.rand(n, 2, generator=generator, dtype=DTYPE) for n in (N, 5))
    return {"inside": (x, torch.arange(N) % 3), "edge": (edge, torch.arange(5) % 3)}


def part(batch: dict[str, Batch], rank: int, world: int) -> dict[str, Batch]:
    """Uneven shares, the first the largest."""
    cuts = {name: [len(x) - k * (len(x) // (world + 1)) for k in range(world)] for name, (x, _) in batch.items()}
    bounds = {name: [0, *sorted(c for c in cut[1:]), cut[0]] for name, cut in cuts.items()}
    return {
        name: (x[bounds[name][rank] : bounds[name][rank + 1]], y[bounds[name][rank] : bounds[name][rank + 1]])
        for name, (x, y) in batch.items()
    }


def residual(net: Any, sample: Batch) -> Tensor:
    return net(sample[0]) - sample[0].sin().sum()


def logits(net: Any, sample: Batch) -> Tensor:
    return net(sample[0])


FUNCTIONS = {"inside": residual, "edge": lambda net, sample: 2 * net(sample[0])}
CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "streamed": {"memory": 5000},
    "nystrom": {"solver": "nystrom", "rank": 4},
    "gaussian": {"solver": "gaussian", "rank": 9},
    "sampled": {"fisher": "sampled"},
    "weighted": {"weights": {"edge": 5.0}},
}


def flat(values: Any) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in values])


def scenarios(rank: int, world: int, distributed: str) -> dict[str, Any]:
    """Directions of every case, a run, and runs with bad batches."""
    share = (lambda batch: part(batch, rank, world)) if distributed == "joined" else (lambda batch: batch)
    seen: dict[str, Any] = {}
    for name, options in CASES.items():
        classify = options.get("fisher") == "sampled"
        functions = dict.fromkeys(FUNCTIONS, logits) if classify else FUNCTIONS
        net = network(3 if classify else 1)
        d, info = natural_gradient(functions, net, share(whole()), distributed=distributed, damping=0.01, **options)
        seen[name] = {"d": flat(d.values()), "loss": info.loss, "trace": info.trace, "error": info.solve_error}
    seen["run"] = run(share, distributed)
    if distributed == "joined":
        seen["spoiled"] = spoiled(share, rank)
        seen["singular"] = singular(share)
    return seen


def run(share: Any, distributed: str) -> dict[str, Any]:
    net = network()
    optimizer = NaturalGradient(net, FUNCTIONS, momentum=0.5, distributed=distributed)
    results = [optimizer.step(share(whole(step))) for step in range(STEPS)]
    lengths = [result.length for result in results]
    return {"w": flat(net.parameters()), "lengths": lengths, "losses": [result.loss_after for result in results]}


def spoiled(share: Any, rank: int) -> dict[str, Any]:
    net = network()
    optimizer = NaturalGradient(net, FUNCTIONS)
    batch = share(whole())
    if rank == 0:
        batch["inside"][0][0] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = optimizer.step(batch)
    return {"w": flat(net.parameters()), "accepted": result.accepted, "skipped": optimizer.counters["skipped"]}


def singular(share: Any) -> str:
    try:
        natural_gradient(lambda net, sample: sample[0], network(), share(whole())["inside"], distributed="auto")
    except SingularError as error:
        return str(error)
    return ""


def main(rank: int, world: int, store: str, out: str) -> None:
    """Run everything as one rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=180)
    )
    torch.save({name: scenarios(rank, world, name) for name in ("joined", "dealt")}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
