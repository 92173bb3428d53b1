"""Models that fully_shard has cut among the ranks: functions of rank and world, named in jobs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from scenarios import LOCAL, RATE, SAMPLES, STEPS, Net, alone, batch, descend, losses
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from traffic import Counted

from seng import SENG, Preconditioner, verify
from seng.distributed import shards
from seng.distributed.wire import buckets
from seng.errors import SengError
from seng.wrappers import own_part

SPLITS = {1: [10], 2: [7, 3], 3: [5, 2, 3]}  # fully_shard wants every rank to run every layer
CUT: dict[str, dict[str, Any]] = {
    "capped": {"refresh_every": 3, "trust": 0.3},
    "power 1, every step": {"power": 1.0, "curvature_batch": "current", "refresh_every": 1},
    "absolute, natural": {"damping_mode": "absolute", "scale": "natural", "power": 1.0, "refresh_every": 3},
}


def cut_net(apart: bool = True) -> Net:
    """Return the network in parts: no layer's rows can be dealt evenly to two, three or four ranks."""
    model = Net()
    if apart:
        for layer in (model.mix, model.conv, model.head):
            fully_shard(layer)
    return fully_shard(model)  # type: ignore[return-value]


def share(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    start, count = sum(SPLITS[world][:rank]), SPLITS[world][rank]
    ids, y = batch(step)
    return ids[start : start + count], y[start : start + count]


def backward(model: nn.Module, step: int, rank: int, world: int, parts: int = 1) -> None:
    """Leave parts of the gradient of the mean over the samples of all ranks; accumulate over micro-batches."""
    model.zero_grad()
    ids, y = share(step, rank, world)
    for k, (some, theirs) in enumerate(zip(ids.tensor_split(parts), y.tensor_split(parts), strict=True)):
        model.set_requires_gradient_sync(k == parts - 1)  # type: ignore[operator]
        (losses(model, some, theirs).sum() * (world / SAMPLES)).backward()


def whole(model: nn.Module) -> Tensor:
    """Return the gradients of all ranks together."""
    return torch.cat([p.grad.full_tensor().reshape(-1) for p in model.parameters() if p.grad is not None])  # type: ignore[union-attr]


@torch.no_grad()
def descend_in_parts(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            own_part(p).sub_(own_part(p.grad), alpha=RATE)


def directions(
    strategy: str, options: dict[str, Any], rank: int, world: int, apart: bool = True, parts: int = 1
) -> list[Tensor]:
    model, seen = cut_net(apart), []
    pre = Preconditioner(model, distributed=strategy, **options)  # type: ignore[arg-type]
    for step in range(STEPS):
        backward(model, step, rank, world, parts)
        assert pre.step()
        seen.append(whole(model))
        descend_in_parts(model)
    pre.close()
    return seen


def worst(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))


def cut_exact(rank: int, world: int) -> dict[str, float]:
    """Largest relative difference of a cut model from one process, by strategy and setting."""
    found = {}
    for setting, options in CUT.items():
        reference = alone(options)
        for strategy in ("global", "sharded"):
            found[f"{strategy}: {setting}"] = worst(directions(strategy, options, rank, world), reference)
    return found


def cut_few(rank: int, world: int) -> dict[str, float]:
    """The same in micro-batches, and with all layers in one group: the number of ranks alone is of interest."""
    options = CUT["capped"]
    reference = alone(options)
    found = {
        "accumulated": worst(directions("sharded", options, rank, world, parts=2), reference),
        "root alone": worst(directions("global", options, rank, world, apart=False), reference),
    }
    if world == 3:
        found["local"] = worst(directions("local", options, rank, world), replicated(options, rank, world))
    return found


def replicated(options: dict[str, Any], rank: int, world: int) -> list[Tensor]:
    """Return the directions of "local" where every rank has the whole model."""
    model, seen = Net(), []
    pre = Preconditioner(model, distributed="local", **options)
    for step in range(STEPS):
        model.zero_grad()
        ids, y = share(step, rank, world)
        (losses(model, ids, y).sum() * (world / SAMPLES)).backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= world  # type: ignore[operator]
        assert pre.step()
        seen.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))  # type: ignore[union-attr]
        descend(model)
    pre.close()
    return seen


def cut_local(rank: int, world: int) -> dict[str, float]:
    """Largest relative difference of "local" from ranks that have the whole model each."""
    return {
        setting: worst(directions("local", options, rank, world), replicated(options, rank, world))
        for setting, options in LOCAL.items()
    }


BYTES: dict[str, dict[str, Any]] = {
    "local": {"distributed": "local"},
    "local, low rank": {"distributed": "local", "estimator": "implicit", "rank": 1, "refresh_every": 4},
    "local, rounded": {"distributed": "local", "wire_dtype": "bfloat16"},
    "global": {"distributed": "global"},
    "global, rounded": {"distributed": "global", "wire_dtype": "bfloat16"},
    "sharded": {"distributed": "sharded"},
    "sharded, rounded": {"distributed": "sharded", "wire_dtype": "bfloat16"},
}
SMALL_BUCKET = 200  # bytes: the network takes several, and one layer more than one of this size


def cut_traffic(rank: int, world: int) -> dict[str, dict[str, Any]]:
    """Bytes of each step as measured and as planned, in small buckets, and how far that moves the directions."""
    found, references = {}, {}
    shards.buckets = partial(buckets, limit=SMALL_BUCKET)
    try:
        for setting, options in BYTES.items():
            model = cut_net()
            pre = Preconditioner(model, **{"refresh_every": 2, **options})  # type: ignore[arg-type]
            measured, planned, seen = [], [], []
            for step in range(2):
                backward(model, step, rank, world)
                meter = Counted(rank)
                with meter.counting():
                    assert pre.step()
                refreshed = step % pre.options.interval_at(step) == 0
                measured.append(meter.total)
                planned.append(pre.plan.step_bytes[rank] + (pre.plan.refresh_bytes[rank] if refreshed else 0))
                seen.append(whole(model))
            pre.close()
            reference = references.setdefault(setting.split(",")[0], seen)
            found[setting] = {"measured": measured, "planned": planned, "error": worst(seen[:1], reference[:1])}
    finally:
        shards.buckets = buckets
    return found


def cut_training(rank: int, world: int) -> dict[str, Any]:
    """A few steps of SENG with a layer and a bias frozen, beside one process; and what becomes of a bad gradient."""
    models = [Net(), Net()]
    for model in models:
        model.conv.requires_grad_(False)
        model.head.bias.requires_grad_(False)
    cut, single = models
    for layer in (cut.mix, cut.conv, cut.head):
        fully_shard(layer)
    fully_shard(cut)
    found: dict[str, Any] = {}
    for base in ("sgd", "adamw"):
        optimizer = SENG(cut, lr=0.02, base=base, distributed="sharded", refresh_every=2)
        reference = SENG(single, lr=0.02, base=base, distributed="none", refresh_every=2)
        for step in range(STEPS):
            backward(cut, step, rank, world)
            optimizer.step()
            reference.zero_grad()
            losses(single, *batch(step)).mean().backward()
            reference.step()
        pairs = zip(cut.parameters(), single.parameters(), strict=True)
        found[base] = worst([p.full_tensor() for p, _ in pairs], list(single.parameters()))  # type: ignore[operator]
        if base == "adamw":
            backward(cut, 0, rank, world)
            if rank == 0:
                own_part(cut.mix.weight.grad).view(-1)[0] = float("nan")  # type: ignore[arg-type]
            optimizer.step()
            found["skipped"] = optimizer.counters["skipped_steps"]
        optimizer.close()
        reference.close()
    return found


def cut_refused(rank: int, world: int) -> dict[str, str]:
    """What is refused, by case: a model, and options."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    line = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    tensors = parallelize_module(nn.Sequential(nn.Linear(4, 4)), line, {"0": ColwiseParallel()})
    some = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard(some[0])
    cases: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "tensor parallel": (tensors, {}),
        "two mesh dimensions": (fully_shard(Net(), mesh=square), {}),  # type: ignore[dict-item]
        "some layers": (some, {}),
        "none": (cut_net(), {"distributed": "none"}),
        "muon": (cut_net(), {"base": "muon"}),
    }
    found = {}
    for name, (model, options) in cases.items():
        try:
            SENG(model, **options)
        except SengError as error:
            found[name] = f"{type(error).__name__}: {error}"
    try:
        verify(cut_net(), lambda: torch.zeros(()))
    except SengError as error:
        found["verify"] = f"{type(error).__name__}: {error}"
    model = Net()
    pre = Preconditioner(model, distributed="sharded")
    fully_shard(model)
    backward(model, 0, rank, world)
    try:
        pre.step()
    except SengError as error:
        found["sharded later"] = f"{type(error).__name__}: {error}"
    pre.close()
    return found
