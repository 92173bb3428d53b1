"""Steps of several processes: weak scaling beside DistributedDataParallel's own, and how well they are foretold.

    python benchmarks/ranks.py [--only NAME] [--rounds 7]

Every rank has one thread and the same number of samples, whatever the number of ranks. Plain SGD and the strategies are
measured in turn, in one process a rank, ten steps (one interval between refreshes) at a time, by the slowest rank;
medians of the rounds. The alpha-beta model is given what one rank measured, a plain step and the rate of curvature's
work, and the all-reduces of two ranks; it then foretells the steps of two and four. Where there are more ranks than
cores, they take turns, and work takes as many times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from environment import RESULTS, save
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import seng
from seng.distributed.timing import Network
from seng.scaling import forecasts
from seng.train.models import deep_autoencoder, small_resnet

WORLDS = (1, 2, 4)
STEPS = 10  # one interval between refreshes
VARIANTS = ("plain", "local", "global", "sharded")
SIZES = (8, 2**22)  # bytes of the all-reduces that latency and bandwidth are read off
TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small ResNet, 64 pictures a rank": (lambda: small_resnet((16, 32, 64), 1, 10), (64, 1, 28, 28)),
    "deep autoencoder, 256 pictures a rank": (lambda: deep_autoencoder((784, 500, 250, 100, 30)), (256, 784)),
}


def optimizer_of(variant: str, model: nn.Module) -> Optimizer:
    if variant == "plain":
        return SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    return seng.SENG(model, lr=1e-4, weight_decay=0.0, refresh_every=STEPS, distributed=variant)


def worker(rank: int, world: int, name: str, rounds: int, folder: str) -> None:
    """Measure as one of several ranks; the first writes what all found."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    make, shape = TASKS[name]
    torch.manual_seed(0)
    models = {variant: make() for variant in VARIANTS}
    optimizers = {variant: optimizer_of(variant, model) for variant, model in models.items()}
    replicas = {variant: DistributedDataParallel(model) for variant, model in models.items()}
    x = torch.rand(shape, generator=torch.Generator().manual_seed(rank))
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(rounds + 1):
        for variant in VARIANTS:
            passed = slowest(lambda v=variant: steps(replicas[v], optimizers[v], x))
            if turn:  # the first round warms up
                seconds[variant].append(passed / STEPS)
    sums = [median(slowest(lambda n=n: all_reduce(n)) for _ in range(30)) for n in SIZES] if world > 1 else None
    plans = {variant: optimizer.preconditioner.plan for variant, optimizer in optimizers.items() if variant != "plain"}  # type: ignore[attr-defined]
    if rank == 0:
        found = {"ms": {variant: 1e3 * median(own) for variant, own in seconds.items()}, "all_reduce_seconds": sums}
        found["flops"] = {variant: max(plan.flops) for variant, plan in plans.items()}
        Path(folder, f"{world}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def steps(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        out = model(x)
        out.square().sum().div(len(x)).backward()
        optimizer.step()


def all_reduce(nbytes: int) -> None:
    dist.all_reduce(torch.zeros(nbytes // 4))


def slowest(run: Callable[[], None]) -> float:
    """Return the seconds of the rank that took longest, all having begun together."""
    dist.barrier()
    start = time.perf_counter()
    run()
    passed = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(passed, dist.ReduceOp.MAX)
    return float(passed)


def network_of(seconds: list[float], ranks: int) -> Network:
    """Return the latency and bandwidth with which all-reduces take what was measured."""
    small, large = seconds
    messages, share = 2 * (ranks - 1), (SIZES[1] - SIZES[0]) / ranks
    return Network(small / messages, messages * share / max(large - small, 1e-9))


def foretold(name: str, found: dict[int, dict[str, Any]], cores: int) -> dict[str, Any]:
    """Return what the model tells of two and four ranks, and how far off it is."""
    make, shape = TASKS[name]
    alone, network = found[1]["ms"], network_of(found[2]["all_reduce_seconds"], 2)
    work = 1e-3 * (alone["local"] - alone["plain"])
    rate = found[1]["flops"]["local"] / work
    result: dict[str, Any] = {
        "latency_us": round(1e6 * network.latency, 1), "bandwidth_gb": round(network.bandwidth / 1e9, 3),
        "rate_gflops": round(rate / 1e9, 2), "ranks": {},
    }  # fmt: skip
    for world in WORLDS[1:]:
        turns = max(1.0, world / cores)
        seconds = 1e-3 * alone["plain"] * turns
        rows = forecasts(make(), torch.rand(shape), [world], network, rate / turns, seconds, refresh_every=STEPS)
        own = {row.strategy: 1e3 * row.seconds for row in rows}
        result["ranks"][str(world)] = {
            variant: {
                "measured_ms": round(found[world]["ms"][variant], 2),
                "foretold_ms": round(own[variant], 2),
                "error": round(own[variant] / found[world]["ms"][variant] - 1, 3),
            }
            for variant in VARIANTS
        }
    return result


def weak_scaling(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return each variant's efficiency from one rank to two, and its share of the plain one's."""
    one, two = found[1]["ms"], found[2]["ms"]
    plain = one["plain"] / two["plain"]
    return {
        variant: {
            "one_rank_ms": round(one[variant], 2),
            "two_ranks_ms": round(two[variant], 2),
            "efficiency": round(one[variant] / two[variant], 3),
            "of_plain": round(one[variant] / two[variant] / plain, 3),
        }
        for variant in VARIANTS
    }


def main() -> None:
    """Measure, foretell, and write results/ranks.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path, cores = RESULTS / "ranks.json", os.cpu_count() or 1
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result.pop("environment", None)
    for name in TASKS if chosen.only is None else [chosen.only]:
        found: dict[int, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for world in WORLDS:
                multiprocessing.spawn(worker, (world, name, chosen.rounds, folder), nprocs=world)  # type: ignore[attr-defined]
                found[world] = json.loads(Path(folder, f"{world}.json").read_text())
        foretelling = foretold(name, found, cores)
        result[name] = {"rounds": chosen.rounds, "weak_scaling": weak_scaling(found), "model": foretelling}
        print(name, json.dumps(result[name], indent=1), sep="\n", flush=True)
        save("ranks", {**result, "steps_between_refreshes": STEPS})


if __name__ == "__main__":
    main()
