"""Steps of several processes: weak scaling beside DistributedDataParallel's own, and how well they are foretold.

    python benchmarks/ranks.py [--only NAME] [--repeats 4] [--rounds 4]

Every rank has one thread and the same number of samples, whatever the number of ranks. Plain SGD and the strategies are
measured in turn, in one process a rank, ten steps (one interval between refreshes) at a time; one, two and four ranks
take turns as well. All ranks begin a step together and the slowest counts. The time of a step is that of the median
refresh and nine times the median of the other steps, over ten: what else the machine does falls on single steps.

The alpha-beta model is given what one process alone measured: a plain step, and the rates of refreshes and of
preconditioning with the samples of one, two and four ranks. Two ranks give the all-reduce, and replicas that exchange
nothing how much slower cores become when all of them work, or take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
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
from seng.apps.train.models import deep_autoencoder, small_resnet
from seng.planning.forecast import forecasts
from seng.planning.network import Network

WORLDS = (1, 2, 4)
STEPS = 10  # one interval between refreshes
STRATEGIES = ("local", "global", "sharded")
VARIANTS = ("alone", "plain", *STRATEGIES)  # SGD on replicas that exchange nothing, on replicas that do, and SENG
SIZES = (8, 2**22)  # bytes of the all-reduces that latency and bandwidth are read off
TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small ResNet, 64 pictures a rank": (lambda: small_resnet((16, 32, 64), 1, 10), (64, 1, 28, 28)),
    "deep autoencoder, 256 pictures a rank": (lambda: deep_autoencoder((784, 500, 250, 100, 30)), (256, 784)),
}


class Replica:
    """A model, its optimizer, and the times of its steps.

    Args:
        variant: One of VARIANTS.
        model: Its own.
        x: Its batch.
        agreed: Turns a time of this rank into the one that counts.
    """

    def __init__(self, variant: str, model: nn.Module, x: Tensor, agreed: Callable[[float], float] = float):
        self.optimizer: Optimizer = (
            seng.SENG(model, lr=1e-4, weight_decay=0.0, refresh_every=STEPS, distributed=variant)
            if variant in STRATEGIES or variant == "none"
            else SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        )
        exchanges = dist.is_initialized() and variant != "alone"
        self.model = DistributedDataParallel(model) if exchanges else model
        self.x, self.agreed = x, agreed
        self.whole: list[list[float]] = [[] for _ in range(STEPS)]
        self.last: list[list[float]] = [[] for _ in range(STEPS)]  # of the optimizer alone

    def interval(self) -> None:
        """Take the steps from one refresh to the next."""
        for whole, last in zip(self.whole, self.last, strict=True):
            if dist.is_initialized():
                dist.barrier()
            begun = time.perf_counter()
            self.optimizer.zero_grad()
            self.model(self.x).square().sum().div(len(self.x)).backward()
            back = time.perf_counter()
            self.optimizer.step()
            ended = time.perf_counter()
            whole.append(self.agreed(ended - begun))
            last.append(ended - back)

    def forget(self) -> None:
        """Leave out what was measured so far."""
        for own in [*self.whole, *self.last]:
            own.clear()


def refresh_and_rest(times: list[list[float]]) -> tuple[float, float]:
    """Return the seconds of a refresh step and of another, from those of each step of the interval."""
    return median(times[0]), median(chain(*times[1:]))


def worker(rank: int, world: int, name: str, rounds: int, folder: str) -> None:
    """Measure as one of several ranks; the first writes what all found."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    make, shape = TASKS[name]
    torch.manual_seed(0)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(rank))
    replicas = {variant: Replica(variant, make(), x, slowest) for variant in VARIANTS}
    measure(list(replicas.values()), rounds)
    sums = [[all_reduce(n) for _ in range(10)] for n in SIZES]
    if rank == 0:
        found = {"steps": {key: own.whole for key, own in replicas.items()}, "all_reduces": sums}
        Path(folder, f"{world}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@dataclass
class Measured:
    """What so many ranks took, of all repeats.

    Args:
        steps: By variant, for each step of the interval between refreshes.
        all_reduces: For each of SIZES.
    """

    steps: dict[str, list[list[float]]] = field(default_factory=dict)
    all_reduces: list[list[float]] = field(default_factory=lambda: [[] for _ in SIZES])

    def add(self, found: dict[str, Any]) -> None:
        """Take what a worker wrote."""
        for variant, times in found["steps"].items():
            own = self.steps.setdefault(variant, [[] for _ in range(STEPS)])
            for all_of_them, more in zip(own, times, strict=True):
                all_of_them += more
        for all_of_them, more in zip(self.all_reduces, found["all_reduces"], strict=True):
            all_of_them += more

    def seconds(self, variant: str) -> float:
        """Return the seconds of a step."""
        refresh, rest = refresh_and_rest(self.steps[variant])
        return (refresh + (STEPS - 1) * rest) / STEPS


def measure(replicas: list[Replica], rounds: int) -> None:
    """Let replicas take their steps in turn; the first round warms up."""
    for turn in range(rounds + 1):
        for replica in replicas:
            replica.interval()
            if not turn:
                replica.forget()


def all_reduce(nbytes: int) -> float:
    dist.barrier()
    begun = time.perf_counter()
    dist.all_reduce(torch.zeros(nbytes // 4))
    return slowest(time.perf_counter() - begun)


def slowest(seconds: float) -> float:
    """Return the most that any rank gives."""
    found = torch.tensor(seconds)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def rates(name: str, samples: int, rounds: int) -> tuple[float, float]:
    """Return the operations a second of refreshes and of preconditioning in one process with so many samples."""
    make, shape = TASKS[name]
    x = torch.rand((samples, *shape[1:]))
    curved, plain = Replica("none", make(), x), Replica("alone", make(), x)
    measure([curved, plain], rounds)
    (refresh, rest), (_, base) = (refresh_and_rest(own.last) for own in (curved, plain))
    plan = seng.plan(make(), x, refresh_every=STEPS)
    refreshing = sum(row.choice.refresh_flops for row in plan.rows)
    applying = sum(row.choice.apply_flops for row in plan.rows)
    return refreshing / (refresh - rest), applying / (rest - base)


def network_of(seconds: list[list[float]], ranks: int) -> Network:
    """Return the latency and bandwidth with which all-reduces take what was measured."""
    small, large = (median(own) for own in seconds)
    messages, share = 2 * (ranks - 1), (SIZES[1] - SIZES[0]) / ranks
    return Network(small / messages, messages * share / max(large - small, 1e-9))


def foretold(name: str, found: dict[int, Measured], rounds: int) -> dict[str, Any]:
    """Return what the model tells of several ranks, and how far off it is."""
    make, shape = TASKS[name]
    torch.set_num_threads(1)
    alone, network = found[1].seconds("alone"), network_of(found[2].all_reduces, 2)
    speed = {world: rates(name, shape[0] * world, rounds) for world in found}
    result: dict[str, Any] = {
        "latency_us": round(1e6 * network.latency, 1), "bandwidth_gb": round(network.bandwidth / 1e9, 3),
        "rates_gflops": {str(world): [round(rate / 1e9, 2) for rate in own] for world, own in speed.items()},
        "slower": {}, "ranks": {},
    }  # fmt: skip
    for world in list(found)[1:]:
        seconds = {variant: found[world].seconds(variant) for variant in VARIANTS}
        slower = seconds["alone"] / alone
        own: dict[str, float] = {}
        for strategies, samples in ((("plain", "local"), 1), (("global", "sharded"), world)):
            refreshing, applying = (rate / slower for rate in speed[samples])
            rows = forecasts(
                make(), torch.rand(shape), [world], network, refreshing, seconds["alone"], applying,
                refresh_every=STEPS,
            )  # fmt: skip
            own |= {row.strategy: row.seconds for row in rows if row.strategy in strategies}
        result["slower"][str(world)] = round(slower, 3)
        result["ranks"][str(world)] = {
            variant: {
                "measured_ms": round(1e3 * seconds[variant], 2),
                "foretold_ms": round(1e3 * own[variant], 2),
                "error": round(own[variant] / seconds[variant] - 1, 3),
            }
            for variant in VARIANTS[1:]
        }
    return result


def weak_scaling(found: dict[int, Measured]) -> dict[str, Any]:
    """Return each variant's efficiency from one rank to two, and its share of the plain one's."""
    one, two = ({variant: found[world].seconds(variant) for variant in VARIANTS} for world in (1, 2))
    plain = one["plain"] / two["plain"]
    return {
        variant: {
            "one_rank_ms": round(1e3 * one[variant], 2),
            "two_ranks_ms": round(1e3 * two[variant], 2),
            "efficiency": round(one[variant] / two[variant], 3),
            "of_plain": round(one[variant] / two[variant] / plain, 3),
        }
        for variant in VARIANTS[1:]
    }


def run(name: str, world: int, rounds: int) -> dict[str, Any]:
    """Return what so many ranks took."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, (world, name, rounds, folder), nprocs=world)  # type: ignore[attr-defined]
        return json.loads(Path(folder, f"{world}.json").read_text())


def main() -> None:
    """Measure, foretell, and write results/ranks.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=list(TASKS))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "ranks.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result.pop("environment", None)
    for name in TASKS if chosen.only is None else [chosen.only]:
        found = {world: Measured() for world in WORLDS}
        for _ in range(chosen.repeats):
            for world in WORLDS:
                found[world].add(run(name, world, chosen.rounds))
        foretelling = foretold(name, found, chosen.rounds)
        rounds = chosen.repeats * chosen.rounds
        result[name] = {"rounds": rounds, "weak_scaling": weak_scaling(found), "model": foretelling}
        print(name, json.dumps(result[name], indent=1), sep="\n", flush=True)
        save("ranks", {**result, "steps_between_refreshes": STEPS})


if __name__ == "__main__":
    main()
