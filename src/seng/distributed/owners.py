"""Strategies "global" and "sharded": curvature of all ranks' samples, layers dealt to owners, longest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..wrappers import Cut
from .base import Updates
from .communicator import Communicator, Pending
from .plan import Load, Plan, plan_dealt
from .ranks import Ranks
from .shards import Reassembled
from .wire import Spec, buckets, pack, parcel_bytes, unpack


class Owners(Ranks):
    """Each layer's owner receives the samples of all ranks and factorises their Gram matrix."""

    pooled = True
    everywhere: ClassVar[bool]

    def arrange(self, loads: Mapping[str, Load], interval: int, overhead: int, budget: int | None) -> Plan:
        before = self.plan.owners if set(loads) == set(self.plan.owners) else None
        return plan_dealt(self.name, loads, self.world, interval, overhead, self.everywhere, before)

    def holds(self, block: str) -> bool:
        return self.solves(block) or block not in self.plan.apart

    def solves(self, block: str) -> bool:
        return self.plan.owners[block] == self.rank

    def reads(self, block: str) -> Sequence[int]:
        return (self.plan.owners[block],) if block in self.plan.apart else range(self.world)

    def _writes(self, block: str) -> Sequence[int]:
        return (self.plan.owners[block],) if block in self.plan.apart else ()

    def spread(self, own: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> dict[str, Tensor]:
        """Send each owner's vectors to all others in flat buckets."""
        found: dict[str, Callable[[], Tensor]] = {}
        for rank in range(self.world):
            names = [name for name in specs if self.plan.owners[name] == rank]
            for run in buckets([parcel_bytes([specs[name]]) for name in names]):
                found |= self._spread_bucket(rank, [names[k] for k in run], own, specs)
        return {name: wait() for name, wait in found.items()}

    def _spread_bucket(
        self, rank: int, names: list[str], own: Mapping[str, Tensor], specs: Mapping[str, Spec]
    ) -> dict[str, Callable[[], Tensor]]:
        announced = [specs[name] for name in names]
        if rank == self.rank:
            flat = pack([own[name] for name in names], announced, self.device)
        else:
            flat = torch.empty(parcel_bytes(announced), dtype=torch.uint8, device=self.device)
        wait = self.wire.start_broadcast(rank, flat, "solutions")
        return {name: lambda k=k: unpack(wait(), announced)[k] for k, name in enumerate(names)}

    def updates(
        self, gradients: Mapping[str, Sequence[Tensor]], cuts: Mapping[str, Sequence[Cut]] | None = None
    ) -> Updates:
        if cuts:
            return Reassembled(self.wire, gradients, cuts, self.reads, self._writes, self.device)
        apart = {name: own for name, own in gradients.items() if name in self.plan.apart}
        return _FromOwners(self.wire, apart, self.plan.owners, self.device)


class Global(Owners):
    """All ranks hold all samples; owners alone factorise. Between refreshes no direction travels.

    Layers whose products are not repeatable bit for bit on their device stay with their owner, as under "sharded".
    """

    name = "global"
    everywhere = True


class Sharded(Owners):
    """Owners write the directions of their layers and hand them on: 1/M of the curvature and of its work a rank."""

    name = "sharded"
    everywhere = False


class _FromOwners(Updates):
    """Directions of each owner's layers, handed to all others bucket by bucket, the owners taking turns."""

    def __init__(
        self,
        wire: Communicator,
        gradients: Mapping[str, Sequence[Tensor]],
        owners: Mapping[str, int],
        device: torch.device,
    ):
        self._wire, self._gradients, self._device = wire, gradients, device
        runs: list[tuple[int, int, list[str]]] = []
        for rank in range(wire.world):
            names = [name for name in gradients if owners[name] == rank]
            for turn, run in enumerate(buckets([parcel_bytes(self._specs([name])) for name in names])):
                runs.append((turn, rank, [names[k] for k in run]))
        self._runs = sorted(runs)
        self._done: set[str] = set()
        self._sent: list[Pending] = []

    def _specs(self, names: Sequence[str]) -> list[Spec]:
        tensors = [x for name in names for x in self._gradients[name]]
        return [(tuple(x.shape), self._wire.sent_as(x.dtype)) for x in tensors]

    def ready(self, name: str, written: bool) -> None:
        self._done.add(name)
        self._go(wait=False)

    def _go(self, wait: bool) -> None:
        """Make the calls whose turn has come: others' buckets at once, this rank's when its layers are done."""
        for _, rank, names in self._runs[len(self._sent) :]:
            specs = self._specs(names)
            if rank != self._wire.rank:
                flat = torch.empty(parcel_bytes(specs), dtype=torch.uint8, device=self._device)
            elif wait or self._done.issuperset(names):
                flat = pack((x for name in names for x in self._gradients[name]), specs, self._device)
            else:
                return
            self._sent.append(self._wire.start_broadcast(rank, flat, "directions"))

    def finish(self, holders: Mapping[str, int]) -> None:
        self._go(wait=True)
        for (_, rank, names), wait in zip(self._runs, self._sent, strict=True):
            flat = wait()
            if rank != self._wire.rank or self._wire.dtype is not None:  # the owner's own are rounded alike
                tensors = [x for name in names for x in self._gradients[name]]
                for x, part in zip(tensors, unpack(flat, self._specs(names)), strict=True):
                    x.copy_(part)
