"""Gradients that are cut among the ranks: parts travel to those who precondition, and directions back in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..wrappers import Cut
from .base import Updates
from .communicator import Communicator, Pending
from .wire import Spec, buckets, pack, parcel_bytes, unpack

Who = Callable[[str], Sequence[int]]  # ranks, by name of a block


class Reassembled(Updates):
    """Whole gradients for as long as they are worked on, bucket by bucket.

    While one bucket is worked on, the parts of the next arrive and the directions of the last go out: all ranks make
    these calls at the same blocks, whoever works on them. A rank has whole gradients of two buckets at a time.

    Args:
        wire: Between the ranks.
        parts: This rank's parts of each block's gradients.
        cuts: How the whole ones are cut.
        readers: The ranks that precondition a block.
        writers: Those whose direction counts; their mean is taken. None of them: each rank keeps its own.
        device: Of all tensors.
    """

    def __init__(
        self,
        wire: Communicator,
        parts: Mapping[str, Sequence[Tensor]],
        cuts: Mapping[str, Sequence[Cut]],
        readers: Who,
        writers: Who,
        device: torch.device,
    ):
        self._wire, self._parts, self._cuts, self._device = wire, parts, cuts, device
        self._readers, self._writers = readers, writers
        names = list(parts)
        pairs = [zip(cuts[name], parts[name], strict=True) for name in names]
        sizes = [sum(prod(cut.shape) * x.element_size() for cut, x in own) for own in pairs]
        self._runs = [[names[k] for k in run] for run in buckets(sizes)]
        self._place = {name: k for k, run in enumerate(self._runs) for name in run}
        self._missing = [len(run) for run in self._runs]
        self._arriving: list[Pending | None] = []
        self._whole: dict[str, list[Tensor]] = {}
        self._absent: set[str] = set()
        self._leaving: list[Pending] = []

    def take(self, name: str) -> Sequence[Tensor]:
        place = self._place[name]
        while len(self._arriving) <= min(place + 1, len(self._runs) - 1):
            self._arriving.append(self._gather(self._runs[len(self._arriving)]))
        if self._wire.rank not in self._readers(name):
            return ()
        wait = self._arriving[place]
        assert wait is not None
        read = [other for other in self._runs[place] if self._wire.rank in self._readers(other)]
        by_rank = _split(wait(), [[self._specs(other, rank) for other in read] for rank in range(self._wire.world)])
        parts = zip(*(theirs[read.index(name)] for theirs in by_rank), strict=True)
        self._whole[name] = [
            cut.join(own).to(x.dtype) for cut, own, x in zip(self._cuts[name], parts, self._parts[name], strict=True)
        ]
        return self._whole[name]

    def ready(self, name: str, written: bool) -> None:
        if name not in self._place:
            return
        place = self._place[name]
        self._absent |= set() if written else {name}
        self._missing[place] -= 1
        if not self._missing[place]:
            self._arriving[place] = None
            self._leaving.append(self._scatter(self._runs[place]))

    def finish(self, holders: Mapping[str, int]) -> None:
        own = self._wire.rank
        for names, wait in zip(self._runs, self._leaving, strict=True):
            senders = range(self._wire.world)
            sent = [[name for name in names if rank in self._from(name)] for rank in senders]
            by_rank = _split(wait(), [[self._specs(name, own) for name in theirs] for theirs in sent])
            for name in names:
                given = [by_rank[rank][sent[rank].index(name)] for rank in self._from(name)]
                if holders.get(name, 0):  # where no rank has curvature the averaged gradient stays
                    for x, *terms in zip(self._parts[name], *given, strict=True):
                        x.copy_(sum((term.to(x.dtype) for term in terms[1:]), terms[0].to(x.dtype)))
                        x.div_(holders[name])

    def _from(self, name: str) -> Sequence[int]:
        """Return the ranks whose direction arrives here."""
        return self._writers(name) or (self._wire.rank,)

    def _specs(self, name: str, rank: int) -> list[Spec]:
        """Return shapes and dtypes of a rank's parts on the wire."""
        pairs = zip(self._cuts[name], self._parts[name], strict=True)
        return [(cut.shape_of(rank), self._wire.sent_as(x.dtype)) for cut, x in pairs]

    def _gather(self, names: Sequence[str]) -> Pending:
        own, ranks = self._wire.rank, range(self._wire.world)
        read = [[name for name in names if rank in self._readers(name)] for rank in ranks]
        specs = [[spec for name in theirs for spec in self._specs(name, own)] for theirs in read]
        tensors = (x for theirs in read for name in theirs for x in self._parts[name])
        due = [sum(parcel_bytes(self._specs(name, rank)) for name in read[own]) for rank in ranks]
        return self._deal(tensors, specs, due, "gradients")

    def _scatter(self, names: Sequence[str]) -> Pending:
        """Start sending each rank its part of this rank's directions, which are let go."""
        own, ranks = self._wire.rank, range(self._wire.world)
        to = [ranks if own in self._writers(name) else (own,) if not self._writers(name) else () for name in names]
        sent = [[name for name, dests in zip(names, to, strict=True) if rank in dests] for rank in ranks]
        specs = [[spec for name in theirs for spec in self._specs(name, rank)] for rank, theirs in enumerate(sent)]
        tensors = (x for rank, theirs in enumerate(sent) for name in theirs for x in self._directions(name, rank))
        due = [sum(parcel_bytes(self._specs(n, own)) for n in names if rank in self._from(n)) for rank in ranks]
        if any(self._writers(name) for name in names):
            pending = self._deal(tensors, specs, due, "directions")
        else:
            flat = pack(tensors, specs[own], self._device)
            pending = lambda: flat  # noqa: E731 - a buffer that is here already
        for name in names:
            self._whole.pop(name, None)
        return pending

    def _directions(self, name: str, rank: int) -> list[Tensor]:
        whole = self._whole.get(name)
        pairs = zip(self._cuts[name], whole or self._parts[name], strict=True)
        if whole is None or name in self._absent:
            return [torch.zeros(cut.shape_of(rank), dtype=x.dtype, device=self._device) for cut, x in pairs]
        return [cut.part(x, rank) for cut, x in pairs]

    def _deal(self, tensors: Iterable[Tensor], specs: list[list[Spec]], due: list[int], purpose: str) -> Pending:
        flat = pack(tensors, [spec for theirs in specs for spec in theirs], self._device)
        return self._wire.start_all_to_all(flat, [parcel_bytes(theirs) for theirs in specs], due, purpose)


def _split(flat: Tensor, specs: Sequence[Sequence[Sequence[Spec]]]) -> list[list[list[Tensor]]]:
    """Return the tensors of each rank's blocks from all that arrived: by rank, by block."""
    found, start = [], 0
    for blocks in specs:
        own = []
        for block in blocks:
            own.append(unpack(flat[start:], block))
            start += parcel_bytes(block)
        found.append(own)
    return found
