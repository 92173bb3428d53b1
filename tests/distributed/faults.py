"""What goes wrong on one rank: functions of rank and world, named in jobs."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from scenarios import Net, Small, average, backward, hashed, small_loss
from torch import Tensor
from torch import distributed as dist

from seng import SENG, Preconditioner
from seng.errors import SengError

STRATEGIES = ("local", "global", "sharded", "auto")


def _bad_at_times(model: Small, rank: int, world: int, step: int) -> Tensor:
    model.zero_grad()
    loss = small_loss(model, rank, step)
    loss.backward()
    average(model, world)
    if step == 1 and rank == 1:
        model.body[0].weight.grad.view(-1)[0] = float("nan")  # type: ignore[union-attr]
    return loss * float("nan") if step == 3 and rank == 1 else loss


def spoiled(rank: int, world: int) -> dict[str, Any]:
    """A step whose batch is bad on one rank; another whose loss is, by its closure."""
    found = {}
    for strategy in STRATEGIES:
        model, seen = Small(), []
        optimizer = SENG(model, lr=0.05, distributed=strategy, refresh_every=2)
        for step in range(5):
            optimizer.step(partial(_bad_at_times, model, rank, world, step))
            seen.append(hashed(model))
        found[strategy] = {"hashes": seen, "counters": optimizer.counters, "steps": optimizer.preconditioner.steps}
        optimizer.close()
    return found


def one_fails(rank: int, world: int) -> dict[str, Any]:
    """Rank 1 alone makes a mistake; all ranks are told, and can go on together."""
    found = {}
    for strategy in STRATEGIES:
        model = Small()
        pre = Preconditioner(model, distributed=strategy)
        told = []
        for mistake in ("no gradient", "input changed", "none"):
            model.zero_grad()
            if not (mistake == "no gradient" and rank == 1):
                small_loss(model, rank, 0).backward()
            if mistake == "input changed" and rank == 1:
                x = torch.randn(3, 4)
                model.body[0](x).sum().backward()
                x.zero_()
            if mistake == "none":
                average(model, world)
            try:
                pre.step()
                told.append("")
            except SengError as error:
                told.append(f"{type(error).__name__}: {error}")
        found[strategy] = told
        pre.close()
    return found


def first_batch_too_small(rank: int, world: int) -> dict[str, str]:
    """No rank has two samples; under pooled strategies two ranks have."""
    found = {}
    for strategy in ("local", "sharded"):
        model = Small()
        pre = Preconditioner(model, distributed=strategy)
        model(torch.randn(1, 4, generator=torch.Generator().manual_seed(rank))).square().sum().backward()
        average(model, world)
        try:
            found[strategy] = str(pre.step())
        except SengError as error:
            found[strategy] = f"{type(error).__name__}: {error}"
        pre.close()
    return found


def mismatched(rank: int, world: int) -> dict[str, str]:
    """Options and models that differ between ranks."""
    pairs: dict[str, tuple[dict[str, Any], ...]] = {
        "damping": ({"damping": 0.1}, {"damping": 0.2}),
        "seed": ({"seed": 0}, {"seed": 1}),
        "exclude": ({}, {"exclude": ["body.0"]}),
        "refresh_every": ({}, {"refresh_every": lambda step: 3}),
    }
    found = {}
    for name, options in pairs.items():
        model = Small()
        pre = Preconditioner(model, distributed="local", **options[rank % 2])
        small_loss(model, rank, 0).backward()
        average(model, world)
        try:
            pre.step()
        except SengError as error:
            found[name] = f"{type(error).__name__}: {error}"
        pre.close()
    for name, dtype in (("dtypes", torch.float32 if rank % 2 else torch.float64), ("gradients", torch.float64)):
        model = Small().to(dtype)
        pre = Preconditioner(model, distributed="local")
        model(torch.ones(6, 4, dtype=dtype)).square().sum(1).mean().backward()
        if name == "gradients" and rank % 2:
            model.get_parameter("body.0.weight").grad = None
        try:
            pre.step()
        except SengError as error:
            found[name] = f"{type(error).__name__}: {error}"
        pre.close()
    return found


def killed(rank: int, world: int) -> str:
    """The last rank dies in the middle of a refresh."""
    model = Net()
    pre = Preconditioner(model, distributed="sharded", refresh_every=1)
    for step in range(3):
        backward(model, step, rank, world)
        if step == 2 and rank == world - 1:
            pre.span = lambda name: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
        try:
            pre.step()
        except SengError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def absent(rank: int, world: int) -> str:
    """The last rank does not come to a step before another has been told that the ranks cannot reach each other."""
    model, store = Small(), dist.distributed_c10d._get_default_store()
    pre = Preconditioner(model, distributed="local")
    for step in range(2):
        model.zero_grad()
        small_loss(model, rank, step).backward()
        average(model, world)
        if step == 1 and rank == world - 1:
            store.wait(["told"], timedelta(seconds=60))
            return ""
        try:
            pre.step()
        except SengError as error:
            store.set("told", "")
            return f"{type(error).__name__}: {error}"
    return ""


def stuck(rank: int, world: int) -> None:
    """Rank 1 leaves the others waiting for ever: what the harness is there for."""
    if rank == 0:
        dist.barrier()
    time.sleep(3600)
