"""Checkpoints that move between numbers of ranks: functions of rank and world, in jobs that follow one another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from scenarios import Net, backward, batch, losses
from torch import Tensor, nn
from torch import distributed as dist
from whole import backward as cut_backward
from whole import cut_net

from seng import SENG, Preconditioner
from seng.checkpoints import load, save
from seng.errors import SengError
from seng.wrappers import sharded

HALF, STEPS = 2, 4
OPTIONS: dict[str, Any] = {"lr": 0.02, "refresh_every": 3, "estimator": "exact"}
SETTINGS = ("local", "global", "sharded", "cut")
CROSSINGS = (("2-cut", "sharded"), ("2-sharded", "cut"), ("2-global", "sharded"), ("2-sharded", "local"))
PATHS = ((1, 2), (2, 1), (2, 2), (2, 3))  # from so many ranks to so many


def build(setting: str) -> tuple[nn.Module, SENG]:
    model = cut_net() if setting == "cut" else Net()
    return model, SENG(model, distributed="sharded" if setting == "cut" else setting, **OPTIONS)  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: SENG, steps: range, rank: int, world: int) -> None:
    for step in steps:
        (cut_backward if hasattr(model, "set_requires_gradient_sync") else backward)(model, step, rank, world)
        optimizer.step()


def whole(model: nn.Module) -> Tensor:
    tensors: list[Any] = list(model.parameters())
    return torch.cat([(x.full_tensor() if sharded(x) else x).detach().reshape(-1) for x in tensors])


def held(optimizer: SENG) -> str:
    """Return a digest of the curvature on this rank."""
    digest = hashlib.sha256()
    for name, own in sorted(optimizer.preconditioner._curvature.items()):
        assert own.factor is not None
        digest.update(name.encode() + own.factor.to_dense().numpy().tobytes())
        digest.update(own.state.matvec(torch.ones(own.factor.n, dtype=torch.float64)).numpy().tobytes())
    return digest.hexdigest()


def saving(rank: int, world: int) -> dict[str, Any]:
    """Half of a run by every setting, saved; and the whole of it."""
    found = {}
    for setting in SETTINGS:
        model, optimizer = build(setting)
        train(model, optimizer, range(HALF), rank, world)
        save(f"{world}-{setting}", model, optimizer, {"step": HALF, "rates": [0.1, None]})
        found[setting] = {"held": held(optimizer)}
        train(model, optimizer, range(HALF, STEPS), rank, world)
        found[setting]["end"] = hashlib.sha256(whole(model).numpy().tobytes()).hexdigest()
        optimizer.close()
    return found


def alone() -> Tensor:
    """Return where one process comes to with the samples of all ranks."""
    model = Net()
    optimizer = SENG(model, distributed="none", **OPTIONS)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses(model, *batch(step)).mean().backward()
        optimizer.step()
    return whole(model)


def loading(rank: int, world: int) -> dict[str, dict[str, Any]]:
    """The other half, on this number of ranks, of every run that was saved."""
    found: dict[str, dict[str, Any]] = {}
    reference = alone()
    pairs = [(one, two) for one, two in PATHS if two == world]
    for source, setting in ((one, setting) for one, _ in pairs for setting in SETTINGS):
        model, optimizer = build(setting)
        extra = load(f"{source}-{setting}", model, optimizer)
        seen: dict[str, Any] = {"extra": extra, "held": held(optimizer), "steps": optimizer.preconditioner.steps}
        train(model, optimizer, range(HALF, STEPS), rank, world)
        seen["end"] = hashlib.sha256(whole(model).numpy().tobytes()).hexdigest()
        seen["error"] = float((whole(model) - reference).norm() / reference.norm())
        seen["refreshed"] = optimizer.preconditioner._last_refresh
        optimizer.close()
        found[f"{source} {setting}"] = seen
    return found


def crossing(rank: int, world: int) -> dict[str, Any]:
    """What was cut goes to whole models; one strategy's curvature to another; "auto" and "local" make theirs anew."""
    reference, found = alone(), {}
    for source, setting in (
        ("2-cut", "sharded"),
        ("2-sharded", "cut"),
        ("2-global", "sharded"),
        ("2-sharded", "local"),
    ):
        model, optimizer = build(setting)
        load(source, model, optimizer)
        train(model, optimizer, range(HALF, STEPS), rank, world)
        error = float((whole(model) - reference).norm() / reference.norm())
        found[f"{source} to {setting}"] = [error, optimizer.preconditioner._last_refresh]
        optimizer.close()
    return found


def damaged(rank: int, world: int) -> dict[str, str]:
    """What is said where a file is missing, all are, or the checkpoint is of another model."""
    folder = Path("2-sharded")
    dist.barrier()
    if rank == 0:
        (folder / "__1_0.distcp").rename("away")
    dist.barrier()
    found, before = {}, None
    cases = {"missing": (str(folder), "sharded"), "none": ("nowhere", "sharded")}
    for name, (source, setting) in cases.items():
        model, optimizer = build(setting)
        before = whole(model)
        found[name] = _refused(source, model, optimizer)
        assert torch.equal(before, whole(model))
        optimizer.close()
    dist.barrier()
    if rank == 0:
        Path("away").rename(folder / "__1_0.distcp")
    dist.barrier()
    model, preconditioner = Net(), Preconditioner(Net(), distributed="sharded")
    save("2-alone", model, preconditioner)
    preconditioner.close()
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    preconditioner = Preconditioner(model, distributed="sharded")
    found["model"] = _refused("2-alone", model, preconditioner)
    preconditioner.close()
    model, _ = build("sharded")
    optimizer = SENG(model, distributed="sharded", **OPTIONS)
    optimizer.bases[0].add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    found["base"] = _refused(str(folder), model, optimizer)
    optimizer.close()
    return found


def _refused(folder: str, model: nn.Module, optimizer: SENG | Preconditioner) -> str:
    try:
        load(folder, model, optimizer)
    except SengError as error:
        return f"{type(error).__name__}: {error}"
    return ""
