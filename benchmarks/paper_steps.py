"""A step of the paper's networks with each optimizer, at their recipes' settings, on one thread of a CPU.

    python benchmarks/paper_steps.py [--recipe NAME]

Inputs are noise of the true shape, 8 a batch: the recipes' batches are for GPUs. The optimizers take turns in one
process; times are CPU seconds of the process, the median of the steps after the first. SENG's first step, which makes
the curvature that the recipe holds for hundreds, stands apart.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from environment import RESULTS, save
from torch import Tensor, nn
from torch.optim import Optimizer

from seng import SENG
from seng.apps.recipes import build_recipe
from seng.apps.train.data import signature
from seng.apps.train.losses import Loss, build_loss
from seng.apps.train.models import build_model
from seng.apps.train.optimizers import build_optimizer

RECIPES = ("cifar10-resnet18", "cifar10-vgg16bn", "imagenet-resnet50")
OPTIMIZERS = ("sgd", "adamw", "seng")
BATCH, STEPS = 8, 6


class Runner:
    """A network with one optimizer, taking steps on the same batch."""

    def __init__(self, recipe: str, optimizer: str) -> None:
        config = replace(build_recipe(recipe, optimizer), batch_size=BATCH)
        torch.manual_seed(0)
        self.samples = signature(config.data)
        self.model: nn.Module = build_model(config.model, self.samples)
        self.loss: Loss = build_loss(config.loss)
        self.optimizer: Optimizer = build_optimizer(self.model, config, steps_per_epoch=1000)

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Take a step and return its CPU seconds."""
        began = time.process_time()
        self.optimizer.zero_grad()
        self.loss(self.model(inputs), targets).backward()
        self.optimizer.step()
        return time.process_time() - began


def measure(recipe: str) -> dict[str, Any]:
    """Return the seconds a step of each optimizer, taking turns."""
    runners = {name: Runner(recipe, name) for name in OPTIMIZERS}
    inputs = runners["sgd"].samples.inputs(BATCH)
    targets = torch.arange(BATCH)
    times: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(STEPS):
        for name, runner in runners.items():
            times[name].append(runner.step(inputs, targets))
    result = {name: round(median(seconds[1:]), 3) for name, seconds in times.items()}
    preconditioned = runners["seng"].optimizer
    assert isinstance(preconditioned, SENG)
    held = sum(layer.nbytes for layer in preconditioned.stats().values())
    return {
        "shape": [BATCH, *runners["sgd"].samples.shape],
        "seconds": result,
        "seconds_of_refresh": round(times["seng"][0], 3),
        "curvature_mib": round(held / 2**20, 1),
    }


def main() -> None:
    """Measure and save; results of other recipes are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=RECIPES)
    only = parser.parse_args().recipe
    torch.set_num_threads(1)
    path = RESULTS / "paper_steps.json"
    kept = json.loads(path.read_text())["recipes"] if path.exists() else {}
    for recipe in [only] if only else RECIPES:
        kept[recipe] = measure(recipe)
        print(recipe, kept[recipe], flush=True)
        save("paper_steps", {"recipes": kept})


if __name__ == "__main__":
    main()
