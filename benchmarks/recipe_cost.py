"""What a step of a recipe costs with SENG and AdamW beside SGD: whole steps as the recipes set them, in turn.

    python benchmarks/recipe_cost.py [--only fashion-autoencoder] [--steps 200]

One process, one thread, CPU times, the same batches for all. Each step is compared with SGD's step just
before; shown are the median and the quartiles of these ratios. The first tenth of the steps is left out.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from statistics import median, quantiles
from typing import Any

import torch
from environment import save

from seng.apps.recipes import build_recipe
from seng.apps.train import build_session

RECIPES = ("fashion-autoencoder",)


def steps(recipe: str, optimizer: str) -> Iterator[float]:
    """Take steps on batches of the training data, in order, and yield the CPU seconds of each."""
    session = build_session(build_recipe(recipe, optimizer))
    torch.set_num_threads(1)
    size = session.config.batch_size
    for indices in itertools.cycle(torch.arange(len(session.data.train)).split(size)[:-1]):
        inputs, targets = session.data.train.batch(indices)
        start = time.process_time()
        session.optimizer.zero_grad()
        session.loss(session.model(inputs), targets).backward()
        session.optimizer.step()
        yield time.process_time() - start


def measure(recipe: str, count: int) -> dict[str, Any]:
    """Return milliseconds of SGD's step, and the others' ratios to it."""
    runs = {name: steps(recipe, name) for name in ("sgd", "seng", "adamw")}
    times = [{name: next(run) for name, run in runs.items()} for _ in range(count)][count // 10 :]
    found: dict[str, Any] = {"sgd_ms": round(1e3 * median(row["sgd"] for row in times), 2), "steps": len(times)}
    for name in ("seng", "adamw"):
        ratios = [row[name] / row["sgd"] for row in times]
        low, _, high = quantiles(ratios, n=4)
        found[name] = {"ratio": round(median(ratios), 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


def main() -> None:
    """Write results/recipe_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(save("recipe_cost", {recipe: measure(recipe, asked.steps) for recipe in asked.only}).read_text())


if __name__ == "__main__":
    main()
