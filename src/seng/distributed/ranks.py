"""What all strategies over several ranks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .agreement import agree, tell_of_error
from .base import Batch, Strategy
from .communicator import Communicator, Pending
from .wire import Spec, buckets, pack, parcel_bytes, unpack

T = TypeVar("T")


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

    def exchange(
        self, own: Mapping[str, Callable[[], list[Tensor]]], specs: Mapping[str, list[list[Spec]]]
    ) -> Callable[[str], list[list[Tensor]]]:
        """Send every block's samples to all ranks where all read them, else to the one that does, bucket by bucket."""
        arriving: dict[str, Callable[[], list[list[Tensor]]]] = {}
        for everyone in (False, True):
            names = [name for name in specs if (len(self.reads(name)) == self.world > 1) == everyone]
            sizes = {name: [parcel_bytes(spec) for spec in specs[name]] for name in names}
            for run in buckets([sum(sizes[name]) for name in names]):
                chosen = [names[k] for k in run]
                start = self._to_all if everyone else self._to_owners
                arriving |= start(chosen, own, specs, sizes)
        return lambda name: arriving.pop(name)()

    def _to_all(
        self,
        names: list[str],
        own: Mapping[str, Callable[[], list[Tensor]]],
        specs: Mapping[str, list[list[Spec]]],
        sizes: Mapping[str, list[int]],
    ) -> dict[str, Callable[[], list[list[Tensor]]]]:
        waits: list[Pending] = []
        for rank in range(self.world):
            if rank == self.rank:
                flat = self._packed(names, own, specs)
            else:
                total = sum(sizes[name][rank] for name in names)
                flat = torch.empty(total, dtype=torch.uint8, device=self.device)
            waits.append(self.wire.start_broadcast(rank, flat, "samples") if len(flat) else lambda flat=flat: flat)

        def take(name: str) -> list[list[Tensor]]:
            found = []
            for rank, wait in enumerate(waits):
                start = sum(sizes[other][rank] for other in names[: names.index(name)])
                found.append(unpack(wait()[start:], specs[name][rank]))
            return found

        return {name: lambda name=name: take(name) for name in names}

    def _to_owners(
        self,
        names: list[str],
        own: Mapping[str, Callable[[], list[Tensor]]],
        specs: Mapping[str, list[list[Spec]]],
        sizes: Mapping[str, list[int]],
    ) -> dict[str, Callable[[], list[list[Tensor]]]]:
        by_owner = [[name for name in names if rank in self.reads(name)] for rank in range(self.world)]
        mine = by_owner[self.rank]
        flat = self._packed([name for theirs in by_owner for name in theirs], own, specs)
        sent = [sum(sizes[name][self.rank] for name in theirs) for theirs in by_owner]
        due = [sum(sizes[name][rank] for name in mine) for rank in range(self.world)]
        wait = self.wire.start_all_to_all(flat, sent, due, "samples")

        def take(name: str) -> list[list[Tensor]]:
            parts = wait().split(due)
            start = [sum(sizes[other][rank] for other in mine[: mine.index(name)]) for rank in range(self.world)]
            return [unpack(part[start[k] :], specs[name][k]) for k, part in enumerate(parts)]

        return {name: lambda name=name: take(name) for name in mine}

    def _packed(
        self,
        names: Iterable[str],
        own: Mapping[str, Callable[[], list[Tensor]]],
        specs: Mapping[str, list[list[Spec]]],
    ) -> Tensor:
        names = list(names)
        announced = [spec for name in names for spec in specs[name][self.rank]]
        return pack((tensor for name in names for tensor in own[name]()), announced, self.device)

    def close(self) -> None:
        self.wire.close()
