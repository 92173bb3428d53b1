"""Loss traces of the recipes: 20 steps on the CPU, kept in golden/ as JSON.

    python tests/recipes/traces.py

writes them anew. On one machine they come out bit for bit equal, so that ``git diff`` then shows whether a change was a
refactoring; what other machines may differ by is the tests' tolerance. They are in float64: in float32 one rounding at
the start moves the losses of a network with batch norm by a tenth within 20 steps, in float64 by a billionth.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seng.apps.recipes import build_recipe
from seng.apps.train.config import DataConfig, RunConfig
from seng.apps.train.data import Dataset, epoch_batches, load_dataset, signature, steps_per_epoch
from seng.apps.train.data.topics import fingerprint
from seng.apps.train.losses import build_loss
from seng.apps.train.models import build_model
from seng.apps.train.optimizers import build_optimizer, build_schedule
from seng.apps.train.settings import override

GOLDEN = Path(__file__).parent / "golden"
STEPS = 20
OPTIMIZERS = ("seng", "sgd", "adamw")

# smaller batches than the recipes', so that all traces together take seconds
SMALLER: dict[str, Mapping[str, str]] = {
    "digits": {},
    "fashion-resnet": {"batch_size": "8"},
    "fashion-autoencoder": {"batch_size": "32"},
    "char-gpt": {"batch_size": "4", "data.size": "32"},
}


def golden_file(recipe: str, optimizer: str) -> Path:
    """Return where a trace is kept."""
    return GOLDEN / f"{recipe}-{optimizer}.json"


def trace_config(recipe: str, optimizer: str) -> RunConfig:
    """Return the settings that a trace is made with."""
    return override(build_recipe(recipe, optimizer), {**SMALLER[recipe], "threads": "1", "device": "cpu"})


def trace(config: RunConfig, steps: int = STEPS) -> list[float]:
    """Return the losses of a run's first steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _losses(config, steps)
    finally:
        torch.set_num_threads(threads)


def _losses(config: RunConfig, steps: int) -> list[float]:
    data, loss_of = loaded(config.data), build_loss(config.loss)
    torch.manual_seed(config.seed)
    model = build_model(config.model, signature(config.data)).double()
    a_pass = steps_per_epoch(len(data.train), config.batch_size)
    optimizer = build_optimizer(model, config, a_pass)
    schedule = build_schedule(optimizer, config.schedule, config.epochs, a_pass)
    losses = []
    for indices in islice(epoch_batches(len(data.train), config.batch_size, config.seed, epoch=0), steps):
        inputs, targets = (_wide(part) for part in data.train.batch(indices))
        optimizer.zero_grad()
        loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _wide(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


@cache
def loaded(config: DataConfig) -> Dataset:
    """Return a data set, read once."""
    return load_dataset(config)


def record(recipe: str, optimizer: str) -> dict[str, Any]:
    """Make a trace, with what it depends on."""
    made_with = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    text = {"text": fingerprint()} if recipe == "char-gpt" else {}
    return {**made_with, **text, "losses": trace(trace_config(recipe, optimizer))}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for recipe in SMALLER:
        for optimizer in OPTIMIZERS:
            text = json.dumps(record(recipe, optimizer), indent=1) + "\n"
            golden_file(recipe, optimizer).write_text(text, encoding="utf-8")
            print(f"wrote {golden_file(recipe, optimizer).name}")
