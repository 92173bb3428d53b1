"""Cost of a whole training step beside SGD's: one thread, interleaved with it in one process, medians; and peak memory.

    python benchmarks/step_cost.py [--steps 30] [--only autoencoder|resnet]

Times are CPU seconds of the process, which a busy machine disturbs least; wall seconds stand beside them. A
cycle of the ResNet is ten steps, one of which refreshes. Memory is the peak of live tensor bytes from building the
model to the end of the fourth step, parameters, gradients, momentum, activations and curvature included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from environment import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.profiler import ProfilerActivity, profile

import seng
from seng.apps.train.models import deep_autoencoder, small_resnet

BATCH = 256
EVERY = 10


@dataclass(frozen=True)
class Task:
    """A model, its loss on a batch, and how to draw one."""

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    draw: Callable[[], tuple[Tensor, Tensor]]


def _reconstruction(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (model(x) - x).square().sum(1).mean()


TASKS = {
    "autoencoder": Task(
        lambda: deep_autoencoder((784, 500, 250, 100, 30)),
        _reconstruction,
        lambda: (torch.rand(BATCH, 784), torch.empty(0)),
    ),
    "resnet": Task(
        lambda: small_resnet((16, 32, 64)),
        lambda model, x, y: F.cross_entropy(model(x), y),
        lambda: (torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))),
    ),
}

Make = Callable[[nn.Module], Optimizer]


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def seng_with(**options: Any) -> Make:
    return lambda model: seng.SENG(model, lr=1e-4, **options)


EACH_STEP: dict[str, Make] = {
    "exact, power 1, current batch": seng_with(
        refresh_every=1, power=1.0, estimator="exact", curvature_batch="current"
    ),
    "exact, power 1, current batch, reweight": seng_with(
        refresh_every=1, power=1.0, estimator="exact", curvature_batch="current", reweight=True, distributed="none"
    ),
    "exact, power 1, previous batch": seng_with(refresh_every=1, power=1.0, estimator="exact"),
    "exact, power 0.5, current batch": seng_with(refresh_every=1, estimator="exact", curvature_batch="current"),
    "exact, power 0.5, previous batch": seng_with(refresh_every=1, estimator="exact"),
    "defaults, every 10": seng_with(),
    "64 of 256 samples, every 10": seng_with(curvature_samples=64),
    "32 of 256 samples, every 10": seng_with(curvature_samples=32),
}
EVERY_TEN: dict[str, Make] = {
    "defaults, every 10": seng_with(refresh_every=EVERY),
    "power 1, every 10": seng_with(refresh_every=EVERY, power=1.0),
    "32 of 256 samples, every 10": seng_with(refresh_every=EVERY, curvature_samples=32),
}
VARIANTS = {"autoencoder": EACH_STEP, "resnet": EVERY_TEN}


class Trainer:
    """One model and optimizer, stepped on batches that all variants share."""

    def __init__(self, task: Task, make: Make):
        torch.manual_seed(0)
        self.task, self.model = task, task.build()
        self.optimizer = make(self.model)
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def step(self, x: Tensor, y: Tensor) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.optimizer.zero_grad()
        self.task.loss(self.model, x, y).backward()
        self.optimizer.step()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def measure(name: str, steps: int) -> dict[str, Any]:
    """Step each variant in turn with SGD, on the same batches."""
    task, rows, base_ms = TASKS[name], {}, []
    base_peak = peak_bytes(task, sgd)
    for key, make in VARIANTS[name].items():
        base, ours = Trainer(task, sgd), Trainer(task, make)
        for _ in range(steps + EVERY):
            batch = task.draw()
            base.step(*batch)
            ours.step(*batch)
        peak = peak_bytes(task, make)
        memory = {"memory_ratio": round(peak / base_peak, 3), "peak_mib": round(peak / 2**20, 2)}
        rows[key] = _ratios(ours, base) | memory
        base_ms.append(1e3 * median(base.cpu[EVERY:]))
    return {
        "batch": BATCH,
        "steps": steps,
        "sgd_cpu_ms": round(median(base_ms), 2),
        "sgd_peak_mib": round(base_peak / 2**20, 2),
        "variants": rows,
    }


def _ratios(trainer: Trainer, base: Trainer) -> dict[str, float]:
    """Median ratios to the neighbouring SGD step; whole cycles for the mean over refreshes."""

    def ratio(ours: list[float], theirs: list[float], keep: Callable[[int], bool]) -> float:
        # warm-up excluded: the first EVERY steps
        picked = [a / b for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if k >= EVERY and keep(k)]
        return round(median(picked), 3)

    cycles = [
        sum(trainer.cpu[k : k + EVERY]) / sum(base.cpu[k : k + EVERY])
        for k in range(EVERY, len(base.cpu) - EVERY + 1, EVERY)
    ]
    return {
        "cpu_ratio_cycle": round(median(cycles), 3),
        "cpu_ratio_refresh_step": ratio(trainer.cpu, base.cpu, lambda k: k % EVERY == 0),
        "cpu_ratio_between": ratio(trainer.cpu, base.cpu, lambda k: k % EVERY != 0),
        "wall_ratio_median": ratio(trainer.wall, base.wall, lambda k: True),
    }


def peak_bytes(task: Task, make: Make) -> int:
    """Peak of live tensor bytes; the largest of three runs, since the profiler may drop events."""
    return max(_peak_of_one_run(task, make) for _ in range(3))


def _peak_of_one_run(task: Task, make: Make) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer = Trainer(task, make)
        for _ in range(4):
            trainer.step(*task.draw())
    live = peak = 0
    assert recorded.profiler is not None
    events: list[Any] = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    """Run the tasks and write results/step_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", choices=sorted(TASKS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = {name: measure(name, chosen.steps) for name in TASKS if chosen.only in (None, name)}
    for name, rows in result.items():
        print(name, f"SGD {rows['sgd_cpu_ms']} ms, {rows['sgd_peak_mib']} MiB")
        for key, row in rows["variants"].items():
            print(f"  {key}: {row}")
    if chosen.only is None:
        print(save("step_cost", result))


if __name__ == "__main__":
    main()
