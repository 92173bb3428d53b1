"""Run folders as ``seng train`` writes them, made of smooth functions instead of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seng.apps.recipes import build_recipe
from seng.apps.train.config import RunConfig
from seng.apps.train.folder import create_run
from seng.apps.train.metrics import (
    CurvatureRecord,
    EndRecord,
    EpochRecord,
    MetricsFile,
    Record,
    StartRecord,
    StepRecord,
)

STEPS = 20  # an epoch
EVERY = 5  # steps between records
PARTS = {"data": 0.0004, "forward": 0.0031, "backward": 0.0058}
LAYERS = ("features.0", "features.3", "features.6", "head")

HOSTILE_RUN = "<img src=x onerror=window.hacked=1> $x & <b>bold"
HOSTILE_LAYER = "</script><script>window.hacked=1</script>{{ 7 * 7 }} $\\frac$"


def write_run(path: Path, config: RunConfig, records: Sequence[Record]) -> Path:
    """Write a run's folder."""
    metrics = MetricsFile(create_run(path, config).metrics)
    for record in records:
        metrics.logged(record)
    return path


def make_run(path: Path, optimizer: str = "seng", *, epochs: int = 6, speed: float = 1.0, **changes: Any) -> Path:
    """Write the folder of a finished run of the digits; ``changes`` go to ``make_records``."""
    config = replace(build_recipe("digits", optimizer), epochs=epochs)
    return write_run(path, config, make_records(optimizer, epochs, speed=speed, **changes))


def make_records(
    optimizer: str, epochs: int, *, speed: float = 1.0, classes: bool = True, layers: Sequence[str] = LAYERS
) -> list[Record]:
    """Return the records of a run whose loss falls like 1 / (1 + speed * epochs done)."""
    records: list[Record] = [StartRecord(1, 1, 0.02, 1.5, {"torch": "2.13.0", "device": "cpu", "threads": 1})]
    seconds_a_step = 0.02 if optimizer == "seng" else 0.012
    for step in range(1, epochs * STEPS + 1):
        epoch, done = (step - 1) // STEPS + 1, step / STEPS
        loss, seconds = 2.3 / (1 + speed * done), step * seconds_a_step
        if step % EVERY == 0:
            wave = loss * (1 + 0.35 * math.sin(step * step))
            right = 1 - loss / 2.4 if classes else None
            records.append(
                StepRecord(epoch, step, wave, right, 0.1 * (1 - done / epochs), seconds, 3200.0, _parts(optimizer))
            )
            if optimizer == "seng":
                records.append(_curvature(epoch, step, seconds, layers, whole=step % STEPS == 0))
        if step % STEPS == 0:
            records.append(_epoch(epoch, step, loss, seconds, classes))
    return [*records, EndRecord(epochs, epochs * STEPS, epochs * STEPS * seconds_a_step, "epochs")]


def _parts(optimizer: str) -> dict[str, float]:
    return PARTS | ({"optimizer": 0.0062, "refresh": 0.0045} if optimizer == "seng" else {"optimizer": 0.0011})


def _epoch(epoch: int, step: int, loss: float, seconds: float, classes: bool) -> EpochRecord:
    tested = loss * 1.1
    shares = (1 - loss / 2.3, 1 - tested / 2.6, 1 - tested / 26) if classes else (None, None, None)
    return EpochRecord(epoch, step, loss, shares[0], tested, shares[1], seconds, 3200.0, shares[2])


def _curvature(epoch: int, step: int, seconds: float, layers: Sequence[str], *, whole: bool) -> CurvatureRecord:
    states, spectra = {}, {}
    for depth, layer in enumerate(layers, 1):
        top = 0.5 * depth / (1 + step / 40)
        values = [top * rank**-1.3 for rank in range(1, 65)]
        damping = 0.1 * sum(values) / 64
        states[layer] = {
            "trace": sum(values),
            "effective_dimension": sum(value / (value + damping) for value in values) / depth**0.5,
            "top_eigenvalues": values[:5],
            "damping": damping,
            "refresh_age": 0,
            "cosine": None if step == EVERY else 0.6 + 0.3 / depth,
            "samples": 64,
            "nbytes": 64 * 1000 * depth,
        }
        spectra[layer] = values
    return CurvatureRecord(
        epoch, step, seconds, states, spectra if whole else {}, {"skipped_steps": 0, "refreshes": step}
    )


def make_hostile_run(root: Path) -> Path:
    """Write the folder of a run in which every name is markup."""
    records = make_records("seng", 2, layers=[HOSTILE_LAYER])
    start = StartRecord(1, 1, 0.02, 1.5, {HOSTILE_LAYER: HOSTILE_LAYER})
    return write_run(root / HOSTILE_RUN, replace(build_recipe("digits"), epochs=2), [start, *records[1:]])
