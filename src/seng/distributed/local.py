"""The paper's strategy: ranks precondition the averaged gradient with their own curvature and average the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod

import torch
from torch import Tensor

from ..wrappers import Cut
from .base import Updates
from .communicator import Communicator, Pending
from .plan import Load, Plan, plan_local
from .ranks import Ranks
from .shards import Reassembled
from .wire import Spec, buckets


class Local(Ranks):
    """Average of the directions of all ranks that have curvature for a layer. Source: PAPER section 5.

    A direction depends on the averaged gradient, so it cannot ride on the all-reduce that makes that average: the least
    that travels at a step is one all-reduce of directions, in flat buckets, each started when its last layer is done.
    Layers that are kept as thin factors hand those on at a refresh, and only n coefficients a rank at a step.
    """

    name = "local"

    def arrange(self, loads: Mapping[str, Load], interval: int, overhead: int, budget: int | None) -> Plan:
        return plan_local(loads, self.world, interval, overhead, budget, self.rates)

    def update_bytes(self, specs: Sequence[Spec]) -> int:
        return sum(prod(shape) * self.wire.sent_as(dtype).itemsize for shape, dtype in specs)

    def reads(self, block: str) -> Sequence[int]:
        return range(self.world) if block in self.plan.thin else ()

    def updates(
        self, gradients: Mapping[str, Sequence[Tensor]], cuts: Mapping[str, Sequence[Cut]] | None = None
    ) -> Updates:
        if cuts:
            everyone = range(self.world)
            return Reassembled(self.wire, gradients, cuts, lambda name: everyone, lambda name: everyone, self.device)
        return _Averaged(self.wire, gradients)


class _Averaged(Updates):
    def __init__(self, wire: Communicator, gradients: Mapping[str, Sequence[Tensor]]):
        self._wire, self._gradients = wire, gradients
        self._absent: set[str] = set()
        self._runs = _runs(wire, gradients)
        self._missing = [len(run) for run in self._runs]
        self._place = {name: k for k, run in enumerate(self._runs) for name in run}
        self._sent: list[Pending] = []

    def ready(self, name: str, written: bool) -> None:
        if name in self._place:
            self._absent |= set() if written else {name}
            self._missing[self._place[name]] -= 1
            self._send()

    def _send(self) -> None:
        """Start the sums of all leading buckets whose layers are done: the same order on every rank."""
        while len(self._sent) < len(self._runs) and not self._missing[len(self._sent)]:
            names = self._runs[len(self._sent)]
            parts = [
                torch.zeros_like(x).reshape(-1) if name in self._absent else x.reshape(-1)
                for name in names
                for x in self._gradients[name]
            ]
            self._sent.append(self._wire.start_sum(torch.cat(parts), "directions"))

    def finish(self, holders: Mapping[str, int]) -> None:
        for names, wait in zip(self._runs, self._sent, strict=True):
            tensors = [(x, holders.get(name, 0)) for name in names for x in self._gradients[name]]
            for (x, count), part in zip(tensors, wait().split([x.numel() for x, _ in tensors]), strict=True):
                if count:  # where no rank has curvature the averaged gradient stays
                    x.copy_(part.view_as(x)).div_(count)


def _runs(wire: Communicator, gradients: Mapping[str, Sequence[Tensor]]) -> list[list[str]]:
    """Cut the blocks into buckets of one dtype, in their order."""
    runs: list[list[str]] = []
    for _, group in groupby(gradients, key=lambda name: gradients[name][0].dtype):
        names = list(group)
        sizes = [sum(x.numel() * wire.sent_as(x.dtype).itemsize for x in gradients[name]) for name in names]
        runs += [[names[k] for k in run] for run in buckets(sizes)]
    return runs
