"""First training figures: the recipes' accuracies, and the autoencoder under held curvature.

    python benchmarks/training.py [--only digits|fashion-resnet|autoencoder]

The recipes run through the command line, as a user runs them. The autoencoder is 784-500-250-100-30 and its mirror,
half squared error, 20,000 pictures of Fashion-MNIST, 3 epochs of batches of 256, one thread; its test loss is the mean
over the 10,000 test pictures. Results of earlier parts are kept, so that parts can be run one by one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, save
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import seng
from seng.apps.train.config import DataConfig
from seng.apps.train.data import load_dataset
from seng.apps.train.models import deep_autoencoder

DIGIT_SEEDS = range(5)
PICTURES, BATCH, EPOCHS = 20_000, 256, 3


def recipe(name: str, *options: str) -> dict[str, Any]:
    """Train a recipe in a process of its own and return its last evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "seng", "train", name, "--out", f"{folder}/run", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, lines) if line["kind"] == "epoch"][-1]
    return {"options": " ".join(options)} | {
        key: round(last[key], 4) for key in ("epoch", "test_accuracy", "test_loss", "seconds")
    }


def digits() -> list[dict[str, Any]]:
    """Run the default recipe with its default options, five seeds."""
    return [recipe("digits", "--seed", str(seed)) for seed in DIGIT_SEEDS]


def fashion_resnet() -> list[dict[str, Any]]:
    """Run the small ResNet on all 60,000 pictures with SENG's defaults."""
    return [recipe("fashion-resnet", "--epochs", "3")]


def autoencoder() -> list[dict[str, Any]]:
    """Train with held curvature of the previous batch, refreshed every 4 and 10 steps, beside others."""
    data = load_dataset(DataConfig("fashion-mnist"))
    train, test = (_pictures(split) for split in (data.train, data.test))
    train = train[:PICTURES]
    previous: dict[str, Callable[[nn.Module], Optimizer]] = {
        "SGD 0.001": lambda model: SGD(model.parameters(), lr=0.001, momentum=0.9),
        "AdamW 0.001": lambda model: AdamW(model.parameters(), lr=0.001),
    }
    for (power, lr, damping), every in itertools.product(
        ((0.5, 0.1, 0.1), (1.0, 0.03, 0.3), (1.0, 0.03, 0.1)), (4, 10)
    ):
        previous[f"SENG power {power} lr {lr} damping {damping} every {every}"] = _seng(lr, power, damping, every)
    return [
        {"optimizer": name, "initial": initial, "decay": decay} | _reconstruct(train, test, make, initial, decay)
        for (name, make), (initial, decay) in itertools.product(
            previous.items(), (("xavier", "none"), ("xavier", "linear"), ("torch", "none"))
        )
    ]


def _seng(lr: float, power: float, damping: float, every: int) -> Callable[[nn.Module], Optimizer]:
    return lambda model: seng.SENG(model, lr=lr, weight_decay=0, power=power, damping=damping, refresh_every=every)


def _pictures(split: Any) -> Tensor:
    raw = split.inputs.flatten(1)
    return (raw - raw.min()) / (raw.max() - raw.min())


def _reconstruct(
    train: Tensor, test: Tensor, make: Callable[[nn.Module], Optimizer], initial: str, decay: str
) -> dict[str, float]:
    torch.manual_seed(0)
    model = deep_autoencoder((784, 500, 250, 100, 30))
    if initial == "torch":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    optimizer = make(model)
    whole = len(train) // BATCH
    orders = [torch.randperm(len(train)).split(BATCH)[:whole] for _ in range(EPOCHS)]
    schedule = seng.PolynomialLR(optimizer, EPOCHS * whole + 1, 1.0) if decay == "linear" else None
    losses = []
    for indices in itertools.chain(*orders):
        x = train[indices]
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - x).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss))
    with torch.no_grad():
        tested = 0.5 * (model(test) - test).square().sum(1).mean()
    return {
        "test_loss": round(float(tested), 3),
        "first_loss": round(losses[0], 1),
        "largest_loss": round(max(losses), 1),
    }


PARTS = {"digits": digits, "fashion-resnet": fashion_resnet, "autoencoder": autoencoder}


def main() -> None:
    """Run the parts and write results/training.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=sorted(PARTS))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    for name in PARTS if only is None else [only]:
        rows = PARTS[name]()
        print(name, *rows, sep="\n  ")
        save("training", earlier() | {name: rows})


def earlier() -> dict[str, Any]:
    """Return the parts that are already in results/training.json."""
    path = RESULTS / "training.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {name: rows for name, rows in kept.items() if name in PARTS}


if __name__ == "__main__":
    main()
