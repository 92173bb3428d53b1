"""Steps to a fixed loss at growing batches, with SENG, SGD and AdamW.

    python benchmarks/batch_scaling.py [--only fashion-autoencoder|fashion-resnet] [--minutes 3]

The batch grows by ranks of 256 samples each, as under ``distributed="local"``: every rank preconditions the mean
gradient with the curvature of its own samples, and the directions are averaged. The ranks are computed one after the
other in one process, as replicas that share their parameters; batch norm sees 256 samples at any batch. All optimizers
have momentum 0.9, the rate is constant after a warm-up, and each is given several rates. The loss is that of the first
2,000 test pictures, looked at every few steps. Results are kept run by run, so that the study can be cut short and
taken up again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from environment import RESULTS, save
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import seng
from seng.apps.recipes import build_recipe
from seng.apps.train.data import Dataset, load_dataset, signature
from seng.apps.train.losses import build_loss
from seng.apps.train.models import build_model

RANK, RANKS = 256, (1, 4, 16)
WARMUP = 10  # steps, the rate growing linearly
TESTED = 2_000
EACH_STEP = {"damping": 0.05, "refresh_every": 1, "curvature_batch": "current", "estimator": "exact", "tolerance": 0.03}


@dataclass(frozen=True)
class Task:
    """A recipe's network and data, and what counts as learned."""

    target: float
    every: int
    most: int
    options: dict[str, Any]
    rates: dict[str, tuple[float, ...]]


TASKS = {
    "fashion-autoencoder": Task(
        10.0, 5, 400, EACH_STEP,
        {
            "seng": (0.0125, 0.025, 0.05, 0.1, 0.2), "adamw": (0.001, 0.002, 0.004, 0.008),
            "sgd": (0.001, 0.002, 0.004, 0.008),
        },
    ),
    "fashion-resnet": Task(
        0.6, 5, 300, {}, {"seng": (0.01, 0.03, 0.1), "adamw": (0.003, 0.01, 0.03), "sgd": (0.1, 0.3, 1.0)},
    ),
}  # fmt: skip


class Ranks:
    """Replicas that share their parameters, each with curvature of its own where there is any."""

    def __init__(self, model: nn.Module, count: int, options: dict[str, Any] | None):
        shared = {id(p): p for p in model.parameters()}
        self.replicas = [copy.deepcopy(model, dict(shared)) for _ in range(count)]
        self.parameters = list(model.parameters())
        self.preconditioners = [] if options is None else [seng.Preconditioner(m, **options) for m in self.replicas]

    def gradient(self, loss: Callable[[nn.Module, Tensor], Tensor], indices: Tensor) -> None:
        """Leave in ``.grad`` the mean of the ranks' gradients, or of their directions."""
        for p in self.parameters:
            p.grad = None
        for replica, own in zip(self.replicas, indices.split(RANK), strict=True):
            loss(replica, own).backward()
        mean = [p.grad / len(self.replicas) for p in self.parameters if p.grad is not None]
        total = [torch.zeros_like(x) for x in mean] if self.preconditioners else mean
        for preconditioner in self.preconditioners:
            for p, x in zip(self.parameters, mean, strict=True):
                p.grad = x.clone()
            preconditioner.step()
            for p, x in zip(self.parameters, total, strict=True):
                assert p.grad is not None
                x.add_(p.grad, alpha=1 / len(self.replicas))
        for p, x in zip(self.parameters, total, strict=True):
            p.grad = x


def base(name: str, parameters: list[nn.Parameter], lr: float) -> Optimizer:
    if name == "adamw":
        return AdamW(parameters, lr=lr, weight_decay=0.01)
    return SGD(parameters, lr=lr, momentum=0.9)


def steps_to_target(name: str, optimizer: str, ranks: int, lr: float, data: Dataset) -> dict[str, Any]:
    """Train until the loss is reached; steps are None where it was not."""
    task, config = TASKS[name], build_recipe(name, optimizer)
    torch.manual_seed(0)
    model, measure = build_model(config.model, signature(config.data)), build_loss(config.loss)
    everyone = Ranks(model, ranks, task.options if optimizer == "seng" else None)
    stepped = base(optimizer, everyone.parameters, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(stepped, lambda step: min(1.0, (step + 1) / WARMUP))
    tested = data.test.batch(torch.arange(TESTED))
    first, start, losses, step = everyone.replicas[0], time.process_time(), [], 0

    def loss(replica: nn.Module, indices: Tensor) -> Tensor:
        inputs, targets = data.train.batch(indices)
        return measure(replica(inputs), targets)

    for step, indices in enumerate(batches(len(data.train), ranks * RANK), 1):
        everyone.gradient(loss, indices)
        stepped.step()
        schedule.step()
        if step % task.every == 0 or step == task.most:
            first.eval()
            with torch.no_grad():
                losses.append(float(measure(first(tested[0]), tested[1])))
            first.train()
            if step == task.most or losses[-1] <= task.target or not losses[-1] < 1e4:
                break
    reached = losses[-1] <= task.target
    return {
        "optimizer": optimizer, "batch": ranks * RANK, "lr": lr, "steps": step if reached else None,
        "best_loss": round(min(losses), 4), "last_loss": round(losses[-1], 4),
        "seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


def batches(samples: int, size: int) -> Iterator[Tensor]:
    """Yield batches of one random order after another, each whole."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from (own for own in torch.randperm(samples, generator=generator).split(size) if len(own) == size)


def main() -> None:
    """Go on with the runs that results/batch_scaling.json does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=sorted(TASKS))
    parser.add_argument("--minutes", type=float, help="start no further run after so many")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path, start = RESULTS / "batch_scaling.json", time.monotonic()
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in TASKS if chosen.only is None else [chosen.only]:
        task, data = TASKS[name], load_dataset(build_recipe(name).data)
        about = {"target": task.target, "every": task.every, "most": task.most, "rank": RANK, "options": task.options}
        rows = found.setdefault(name, about | {"runs": []})["runs"]
        done = {(row["optimizer"], row["batch"], row["lr"]) for row in rows}
        for ranks in RANKS:
            for optimizer, rates in task.rates.items():
                for lr in rates:
                    if (optimizer, ranks * RANK, lr) in done:
                        continue
                    if chosen.minutes is not None and time.monotonic() - start > 60 * chosen.minutes:
                        return
                    rows.append(steps_to_target(name, optimizer, ranks, lr, data))
                    print(name, rows[-1], flush=True)
                    save("batch_scaling", {key: value for key, value in found.items() if key != "environment"})


if __name__ == "__main__":
    main()
