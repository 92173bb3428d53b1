"""What all strategies over several ranks have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from .agreement import agree, tell_of_error
from .base import Batch, Everyones, Makers, Strategy
from .communicator import Communicator, Pending
from .wire import Spec, buckets, pack, parcel_bytes, unpack

T = TypeVar("T")
Flats = Callable[[], Sequence[Tensor]]  # waits for a buffer from each rank


class Ranks(Strategy):
    """Several ranks of torch.distributed."""

    several = True

    def __init__(self, wire_dtype: torch.dtype | None = None, wire: Communicator | None = None):
        super().__init__(wire_dtype)
        self.wire = wire or Communicator.among_all(dtype=wire_dtype, own_group=True)
        self.rank, self.world = self.wire.rank, self.wire.world

    def current(self, name: str) -> bool:
        return self.wire.current

    def together(self, prepare: Callable[[], tuple[T, Batch]]) -> tuple[T, Callable[[], bool]]:
        try:
            value, batch = prepare()
            good, facts = batch.good.to(self.device), batch.facts()
        except Exception:
            tell_of_error(self.wire, self.device)
            raise
        return value, agree(self.wire, good, facts)

    def update_bytes(self, specs: Sequence[Spec]) -> int:
        return self.part_bytes(specs)

    def part_bytes(self, specs: Sequence[Spec]) -> int:
        return parcel_bytes([(shape, self.wire.sent_as(dtype)) for shape, dtype in specs])

    def census(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return self.wire.all_gather(own, "census").tolist()

    def tables(self, own: Tensor, purpose: str) -> Tensor:
        return self.wire.all_gather(own.to(self.device), purpose).to(own.device)

    def exchange(self, own: Makers, specs: Everyones) -> Callable[[str], list[list[Tensor]]]:
        """Send every block's samples to all ranks where all read them, else to the one that does, bucket by bucket."""
        arriving: dict[str, Callable[[], list[list[Tensor]]]] = {}
        for everyone in (False, True):
            names = [name for name in specs if (len(self.reads(name)) == self.world > 1) == everyone]
            for run in buckets([sum(map(parcel_bytes, specs[name])) for name in names]):
                chosen = [names[k] for k in run]
                mine, flats = (self._to_all if everyone else self._to_owners)(chosen, own, specs)
                starts = [0] * self.world
                for name in mine:
                    arriving[name] = partial(_unpacked, flats, starts, specs[name])
                    starts = [start + parcel_bytes(theirs) for start, theirs in zip(starts, specs[name], strict=True)]
        return lambda name: arriving.pop(name)()

    def _to_all(self, names: list[str], own: Makers, specs: Everyones) -> tuple[list[str], Flats]:
        waits: list[Pending] = []
        for rank in range(self.world):
            if rank == self.rank:
                flat = self._packed(names, own, specs)
            else:
                total = sum(parcel_bytes(specs[name][rank]) for name in names)
                flat = torch.empty(total, dtype=torch.uint8, device=self.device)
            waits.append(self.wire.start_broadcast(rank, flat, "samples") if len(flat) else lambda flat=flat: flat)
        return names, lambda: [wait() for wait in waits]

    def _to_owners(self, names: list[str], own: Makers, specs: Everyones) -> tuple[list[str], Flats]:
        by_owner = [[name for name in names if rank in self.reads(name)] for rank in range(self.world)]
        mine = by_owner[self.rank]
        flat = self._packed([name for theirs in by_owner for name in theirs], own, specs)
        sent = [sum(parcel_bytes(specs[name][self.rank]) for name in theirs) for theirs in by_owner]
        due = [sum(parcel_bytes(specs[name][rank]) for name in mine) for rank in range(self.world)]
        wait = self.wire.start_all_to_all(flat, sent, due, "samples")
        return mine, lambda: wait().split(due)

    def _packed(self, names: list[str], own: Makers, specs: Everyones) -> Tensor:
        announced = [spec for name in names for spec in specs[name][self.rank]]
        return pack((tensor for name in names for tensor in own[name]()), announced, self.device)

    def close(self) -> None:
        self.wire.close()


def _unpacked(flats: Flats, starts: list[int], specs: list[list[Spec]]) -> list[list[Tensor]]:
    """Return every rank's tensors of one block, which begin somewhere in its buffer."""
    parts = zip(flats(), starts, specs, strict=True)
    return [unpack(flat[start:], theirs) for flat, start, theirs in parts]
