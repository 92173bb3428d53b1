"""Train the recipes as a user does, with each optimizer: the figures of README and of the recipes' pages.

    python benchmarks/recipes.py [--only digits ...] [--runs runs]

Every run is the command line's own, one after the other, in a process of its own with the recipe's settings. Results of
earlier recipes are kept, so that they can be run one by one. The run folders stay under --runs, for `seng report`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, save

OPTIMIZERS = ("seng", "sgd", "adamw")
SEEDS = {"digits": 5, "fashion-autoencoder": 3, "fashion-resnet": 1, "char-gpt": 1}
THREADS = {"fashion-resnet": ("--set", "threads=1")}  # so that times can be compared with the others'
KEPT = ("epoch", "step", "train_loss", "test_loss", "test_accuracy", "seconds")


def run(recipe: str, optimizer: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train one recipe with one optimizer and return its evaluations and its command."""
    folder = runs / f"{recipe}-{optimizer}-{seed}"
    command = ["train", recipe, "--optimizer", optimizer, "--seed", str(seed), *THREADS.get(recipe, ())]
    whole = [sys.executable, "-m", "seng", *command, "--out", str(folder), "--overwrite"]
    subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{key: _rounded(record[key]) for key in KEPT} for record in records if record["kind"] == "epoch"]
    return {"optimizer": optimizer, "seed": seed, "command": " ".join(("seng", *command)), "epochs": epochs}


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Run the recipes and write results/recipes.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=sorted(SEEDS), default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for recipe in asked.only:
        rows = []
        for seed in range(SEEDS[recipe]):
            for optimizer in OPTIMIZERS:
                rows.append(run(recipe, optimizer, seed, asked.runs))
                print(recipe, optimizer, seed, rows[-1]["epochs"][-1], flush=True)
        path = RESULTS / "recipes.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        save("recipes", {name: kept[name] for name in SEEDS if name in kept} | {recipe: rows})


if __name__ == "__main__":
    main()
