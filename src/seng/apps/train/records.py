"""Records made from a live run: what it runs on, and the state of its curvature."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.optim import Optimizer

from ... import __version__
from ...optimizer import SENG
from .data import data_status
from .metrics import STATE, CurvatureRecord
from .session import Session

SPECTRUM = 64  # eigenvalues a block that a record holds at most


def environment(session: Session) -> dict[str, str | int]:
    """Return what a run's numbers depend on beside its settings."""
    cuda = session.device.type == "cuda"
    return {
        "seng": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "data": data_status(session.config.data),
        "device": torch.cuda.get_device_name(session.device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "processes": session.ranks.world,
    }


def curvature_record(
    optimizer: Optimizer, epoch: int, step: int, seconds: float, *, spectra: bool
) -> CurvatureRecord | None:
    """Return the state of an optimizer's curvature, or None where it has none.

    Cost: eigenvalues of the blocks refreshed since, where the optimizer holds none (power 1).
    """
    if not isinstance(optimizer, SENG):
        return None
    stats = optimizer.stats()
    layers = {name: {number: getattr(layer, number) for number in STATE} for name, layer in stats.items()}
    thinned = {name: thin(layer.spectrum.tolist()) for name, layer in stats.items()} if spectra else {}
    return CurvatureRecord(epoch, step, seconds, layers, thinned, optimizer.counters)


def merged(records: Sequence[CurvatureRecord]) -> CurvatureRecord:
    """Return the first of several processes' records with the layers that only others hold."""
    first, *others = records
    layers, spectra = dict(first.layers), dict(first.spectra)
    for record in others:
        layers |= {name: numbers for name, numbers in record.layers.items() if name not in layers}
        spectra |= {name: values for name, values in record.spectra.items() if name not in spectra}
    return replace(first, layers=layers, spectra=spectra)


def thin(values: Sequence[float], size: int = SPECTRUM) -> list[float]:
    """Return at most ``size`` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= size:
        return list(values)
    return [values[round(k * (len(values) - 1) / (size - 1))] for k in range(size)]
