"""What other libraries wrap around a model or make of its parameters: what is looked through, followed or refused.

``fully_shard`` leaves the modules where they are and cuts every parameter, its gradient and its momentum into one part
a rank. Curvature wants gradients whole: strategies bring the parts together and hand directions back in parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .errors import ModelError, OptionError

# by name, so that nothing is imported for their sake; a subclass counts as its base
REFUSED = {
    "DataParallel": "Use torch.nn.parallel.DistributedDataParallel",
    "FullyShardedDataParallel": "Use torch.distributed.fsdp.fully_shard",
    "DeepSpeedEngine": "Use torch.distributed.fsdp.fully_shard, or DistributedDataParallel",
}
SUPPORTED = "a module, DistributedDataParallel, torch.compile or fully_shard"
ONE_MESH = "Call fully_shard with a one-dimensional mesh over all ranks, the default"


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut into one part a rank along an axis, as torch.chunk does; the last parts may be empty.

    Args:
        shape: Of the whole tensor.
        axis: Along which it is cut.
        world: Number of parts.
    """

    shape: tuple[int, ...]
    axis: int
    world: int

    def span(self, rank: int) -> tuple[int, int]:
        """Return where a rank's part begins along the axis, and its length."""
        length = self.shape[self.axis]
        most = -(-length // self.world)
        start = min(length, rank * most)
        return start, min(length, start + most) - start

    def shape_of(self, rank: int) -> tuple[int, ...]:
        """Return the shape of a rank's part."""
        return (*self.shape[: self.axis], self.span(rank)[1], *self.shape[self.axis + 1 :])

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """Return a view of a rank's part."""
        return whole.narrow(self.axis, *self.span(rank))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the whole tensor, from all ranks' parts."""
        return torch.cat(list(parts), self.axis)


def cut_of(parameter: Tensor) -> Cut | None:
    """Return how ``fully_shard`` has cut a parameter; None where this rank has all of it."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.size() == 1:
        return None
    (placement,) = parameter.placements  # type: ignore[attr-defined]
    return Cut(tuple(parameter.shape), placement.dim, mesh.size())


def sharded(parameter: Tensor) -> bool:
    """Return whether a parameter is one of those that ``fully_shard`` makes."""
    return hasattr(parameter, "device_mesh")


def own_part(x: Tensor) -> Tensor:
    """Return what this rank has of a parameter or its gradient, in the same memory."""
    if not hasattr(x, "to_local"):
        return x
    with torch.no_grad():  # with gradients to_local returns a copy that belongs to the graph
        return x.to_local()  # type: ignore[operator]


def unwrap(model: nn.Module, call: str) -> nn.Module:
    """Return the model inside DistributedDataParallel and torch.compile, whose names and hooks are used.

    Raises:
        OptionError: It is no module.
        ModelError: A wrapper replicates or shards modules or parameters in a way that cannot be followed.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(
            call, "model out of range", expected="a torch.nn.Module", got=type(model).__name__,
            fix="Pass the model, not its parameters",
        )  # fmt: skip
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module, call)
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return unwrap(inner, call)
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in REFUSED:
                raise _unsupported(call, "unsupported wrapper", SUPPORTED, kind.__name__, REFUSED[kind.__name__])
    _require_followed(model, call)
    return model


def _require_followed(model: nn.Module, call: str) -> None:
    """Refuse parameters that are cut in another way than by ``fully_shard`` alone, over all ranks."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in named:
        if hasattr(parameter, "ds_id"):
            raise _unsupported(call, "parameters of DeepSpeed ZeRO", SUPPORTED, name, REFUSED["DeepSpeedEngine"])
    cut = {name: p for name, p in named if sharded(p)}
    if not cut:
        return
    from torch.distributed.fsdp import FSDPModule

    followed = {id(p) for module in model.modules() if isinstance(module, FSDPModule) for p in module.parameters()}
    for name, parameter in named:
        if name not in cut:
            raise _unsupported(
                call, "some parameters are sharded, others are not", "all or none", name,
                "Call fully_shard on the whole model, without ignored_params",
            )  # fmt: skip
        for expected, got, fix in _complaints(parameter, id(parameter) in followed):
            raise _unsupported(call, f"sharded parameter {name} cannot be followed", expected, got, fix)


def _complaints(parameter: Any, followed: bool) -> Iterator[tuple[str, object, str]]:
    """Yield what is expected of a sharded parameter but not so: what was expected, what it is, what to do."""
    mesh, placements = parameter.device_mesh, parameter.placements
    if not followed:
        yield "fully_shard", f"{placements} of another", "Use fully_shard, without tensor parallelism"
    if mesh.ndim != 1 or not placements[0].is_shard():
        yield "one mesh dimension, sharded", placements, ONE_MESH
    if mesh.mesh.tolist() != list(range(dist.get_world_size())):
        yield "a mesh over all ranks in order", mesh.mesh.tolist(), ONE_MESH
    if own_part(parameter).device.type != mesh.device_type:
        yield f"parameters on {mesh.device_type}", own_part(parameter).device.type, "Leave out CPUOffloadPolicy"


def _unsupported(call: str, problem: str, expected: str, got: object, fix: str) -> ModelError:
    return ModelError(call, problem, expected=expected, got=got, fix=fix)
