"""States of one rank, of others, of other numbers of ranks; groups that come late, go or change: named in jobs."""

from __future__ import annotations

import os
import signal
import time
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from scenarios import BYTES_ALONE, Net, backward, batch, hashed, losses
from torch import distributed as dist
from torch import nn

from seng import SENG
from seng.checkpoints import save
from seng.errors import SengError

SETTINGS: dict[str, dict[str, Any]] = {
    "local": {"distributed": "local"},
    "local, thin": {"distributed": "local", "estimator": "implicit", "rank": 1, "sketch_size": 100},
    "global": {"distributed": "global"},
    "sharded": {"distributed": "sharded"},
    "auto": {"distributed": "auto"},
}
LOADS = ("own", "first", "rotated", "mixed")
HALF, STEPS, INTERVAL = 3, 9, 5
PATIENCE = timedelta(seconds=600)  # of groups whose ranks must be told of an end long before


def build(setting: str) -> tuple[Net, SENG]:
    model = Net()
    optimizer = SENG(model, lr=0.02, refresh_every=INTERVAL, **SETTINGS[setting])
    optimizer.preconditioner.strategy.given_rates = BYTES_ALONE
    return model, optimizer


def train(model: nn.Module, optimizer: SENG, steps: range, rank: int, world: int) -> None:
    for step in steps:
        backward(model, step, rank, world)
        optimizer.step()


def everyones(own: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def source(load: str, rank: int, world: int) -> int:
    """Return the rank whose state a rank loads."""
    return {"own": rank, "first": 0, "rotated": (rank + 1) % world, "mixed": 0 if rank == world - 1 else rank}[load]


def tale(model: nn.Module, optimizer: SENG) -> dict[str, Any]:
    pre = optimizer.preconditioner
    return {
        "hash": hashed(model), "refreshed": pre._last_refresh, "steps": pre.steps,
        "remade": pre.counters.get("remade_curvature", 0), "skipped": pre.counters.get("skipped_steps", 0),
    }  # fmt: skip


def loaded(rank: int, world: int) -> dict[str, Any]:
    """Where a run ends after each rank has loaded one of the ranks' states, and where it ends without."""
    found = {}
    for setting in SETTINGS:
        model, optimizer = build(setting)
        train(model, optimizer, range(HALF), rank, world)
        states = everyones((model.state_dict(), optimizer.state_dict()))
        train(model, optimizer, range(HALF, STEPS), rank, world)
        found[setting] = {"whole": tale(model, optimizer), "parameters": parameters(model)}
        optimizer.close()
        for load in LOADS:
            model, optimizer = build(setting)
            own = deepcopy(states[source(load, rank, world)])  # a base takes over the tensors it is given
            model.load_state_dict(own[0])
            optimizer.load_state_dict(own[1])
            again = optimizer.state_dict()["preconditioner"]["place"] == own[1]["preconditioner"]["place"]
            train(model, optimizer, range(HALF, HALF + 1), rank, world)
            first = optimizer.preconditioner._last_refresh
            train(model, optimizer, range(HALF + 1, STEPS), rank, world)
            found[setting][load] = {**tale(model, optimizer), "first": first, "again": again}
            optimizer.close()
    return found


def loaded_in_place(rank: int, world: int) -> dict[str, Any]:
    """One rank's state in an optimizer that has trained on, its strategy settled, and again after more steps."""
    found = {}
    for setting in SETTINGS:
        model, optimizer = build(setting)
        train(model, optimizer, range(HALF), rank, world)
        states = everyones(optimizer.state_dict())
        train(model, optimizer, range(HALF, HALF + 2), rank, world)
        for _ in range(2):
            optimizer.load_state_dict(deepcopy(states[0]))
            train(model, optimizer, range(HALF, STEPS), rank, world)
        found[setting] = tale(model, optimizer)
        optimizer.close()
    return found


def disagreeing(rank: int, world: int) -> dict[str, str]:
    """States that differ in step or seed, and a state on some ranks alone."""
    found = {}
    model, optimizer = build("sharded")
    train(model, optimizer, range(1), rank, world)
    early = optimizer.state_dict()
    train(model, optimizer, range(1, 2), rank, world)
    late = optimizer.state_dict()
    seeded = {"bases": late["bases"], "preconditioner": {**late["preconditioner"], "seed": 7}}
    optimizer.close()
    for name, states in {"step": (early, late), "seed": (seeded, late), "state_loaded": (late, None)}.items():
        model, optimizer = build("sharded")
        train(model, optimizer, range(2), rank, world)
        own = states[min(rank, 1)]
        if own is not None:
            optimizer.load_state_dict(own)
        before = hashed(model)
        try:
            train(model, optimizer, range(2, 3), rank, world)
        except SengError as error:
            found[name] = f"{type(error).__name__}: {error}"
        assert hashed(model) == before
        optimizer.close()
    return found


def kept(rank: int, world: int) -> None:
    """Leave the first rank's states in the folder, for other numbers of ranks."""
    for setting in SETTINGS:
        model, optimizer = build(setting)
        train(model, optimizer, range(HALF), rank, world)
        if rank == 0:
            torch.save((model.state_dict(), optimizer.state_dict()), f"{world} {setting}.pt")
        optimizer.close()


def taken(rank: int, world: int) -> dict[str, Any]:
    """The first rank's state of other numbers of ranks, on every rank here."""
    found = {}
    for file in sorted(Path().glob("[0-9] *.pt")):
        name = file.stem
        if int(name[0]) != world:
            model, optimizer = build(name[2:])
            own = torch.load(file, weights_only=True)
            model.load_state_dict(own[0])
            optimizer.load_state_dict(own[1])
            train(model, optimizer, range(HALF, STEPS), rank, world)
            found[name] = {**tale(model, optimizer), "parameters": parameters(model)}
            optimizer.close()
    return found


def parameters(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist()


class Groups:
    """Default groups that come and go, on files in the jobs' folder."""

    def __init__(self, name: str, rank: int, world: int):
        self._name, self._rank, self._world, self._count = name, rank, world, 0

    def leave(self) -> None:
        dist.barrier()
        dist.destroy_process_group()

    def join(self, timeout: timedelta = PATIENCE) -> None:
        self._count += 1
        place = f"file://{Path.cwd()}/{self._name}-{self._world}-{self._count}"
        dist.init_process_group(
            "gloo", init_method=place, rank=self._rank, world_size=self._world, timeout=timeout
        )  # fmt: skip


def late(rank: int, world: int) -> dict[str, Any]:
    """A group that comes after the optimizer, and before it; after a state, too."""
    groups, found = Groups("late", rank, world), {}
    for setting in SETTINGS:
        ends = []
        for early in (True, False):
            groups.leave()
            if early:
                groups.join()
            model, optimizer = build(setting)
            if not early:
                groups.join()
                optimizer.preconditioner.join_ranks("test")
                optimizer.preconditioner.strategy.given_rates = BYTES_ALONE
            train(model, optimizer, range(HALF), rank, world)
            state = optimizer.state_dict()
            optimizer.close()
            groups.leave()
            if early:
                groups.join()
            model, optimizer = build(setting)
            optimizer.load_state_dict(state)
            if not early:
                groups.join()
                optimizer.preconditioner.join_ranks("test")
                optimizer.preconditioner.strategy.given_rates = BYTES_ALONE
            train(model, optimizer, range(HALF, STEPS), rank, world)
            ends.append(tale(model, optimizer))
            optimizer.close()
        found[setting] = ends
    return found


def wrapped_later(rank: int, world: int) -> dict[str, str]:
    """SENG, then the group, then DistributedDataParallel around a model that differs between the ranks until then."""
    groups, found = Groups("wrapped", rank, world), {}
    for setting in SETTINGS:
        groups.leave()
        torch.manual_seed(rank)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        optimizer = SENG(model, lr=0.05, refresh_every=INTERVAL, **SETTINGS[setting])
        groups.join()
        replica = nn.parallel.DistributedDataParallel(model)
        for _ in range(STEPS):
            optimizer.zero_grad()
            replica(torch.randn(6, 4)).pow(2).sum(1).mean().backward()
            optimizer.step()
        found[setting] = hashed(model)
        optimizer.close()
    return found


def changed(rank: int, world: int) -> dict[str, Any]:
    """In the middle of a run its group is made anew, comes for the first time, goes, or numbers its ranks otherwise."""
    groups, found = Groups("changed", rank, world), {}
    other = Groups("turned", world - 1 - rank, world)
    for setting in SETTINGS:
        model, optimizer = build(setting)
        train(model, optimizer, range(HALF), rank, world)
        groups.leave()
        groups.join()
        train(model, optimizer, range(HALF, STEPS), rank, world)
        found[f"made anew: {setting}"] = tale(model, optimizer)
        train(model, optimizer, range(STEPS, STEPS + 1), rank, world)
        groups.leave()
        other.join()
        train(model, optimizer, range(STEPS, 2 * STEPS), world - 1 - rank, world)
        found[f"renumbered: {setting}"] = tale(model, optimizer)
        groups.leave()
        alone = _alone(model, optimizer)
        found[f"gone: {setting}"] = {**tale(model, optimizer), "error": alone}
        groups.join()
        optimizer.close()
    groups.leave()
    model, optimizer = build("auto")
    _alone(model, optimizer)
    groups.join()
    train(model, optimizer, range(HALF, STEPS), rank, world)
    found["came"] = tale(model, optimizer)
    optimizer.close()
    return found


def _alone(model: nn.Module, optimizer: SENG) -> str:
    """Take steps without other ranks, all with the same samples."""
    try:
        for step in range(HALF):
            optimizer.zero_grad()
            losses(model, *batch(step)).mean().backward()
            optimizer.step()
    except SengError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def left(rank: int, world: int) -> dict[str, str]:
    """The last rank has no more batches: it closes, saves, drops its group or ends, while the others take a step."""
    groups, found = Groups("left", rank, world), {}
    for way in ("closes", "saves", "leaves", "ends"):
        dist.destroy_process_group()
        groups.join()
        model, optimizer = build("sharded")
        train(model, optimizer, range(HALF), rank, world)
        steps, told = range(HALF, HALF + (rank < world - 1)), ""
        try:
            train_apart(model, optimizer, steps, rank)
            if rank == world - 1:
                if way == "closes":
                    optimizer.close()
                elif way == "saves":
                    save("left", model, optimizer)
                elif way == "leaves":
                    dist.destroy_process_group()
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
        except SengError as error:
            told = f"{type(error).__name__}: {error}"
        found[way] = told
        _wait_for_all(way, rank, world)
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"file://{Path.cwd()}/left-{way}", rank=0, world_size=1)
    return found


def train_apart(model: nn.Module, optimizer: SENG, steps: range, rank: int) -> None:
    """Take steps whose gradients are not averaged, so that SENG's calls are the first to meet the others."""
    for step in steps:
        optimizer.zero_grad()
        losses(model, *batch(step)).mean().backward()
        optimizer.step()


def _wait_for_all(way: str, rank: int, world: int) -> None:
    """Wait until every rank that is left has been told, without a group."""
    Path(f"told {way} {rank}").touch()
    while way != "ends" and len(list(Path().glob(f"told {way} *"))) < world:
        time.sleep(0.01)
