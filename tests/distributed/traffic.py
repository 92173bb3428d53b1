"""What ranks receive and hold, measured beside what was planned: functions of rank and world, named in jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from scenarios import BYTES_ALONE, Net, average, backward
from torch import Tensor, nn
from torch import distributed as dist

from seng import Preconditioner
from seng.distributed.ranks import Ranks
from seng.planning.forecast import forecasts
from seng.planning.network import Network
from seng.solve import EigenState


class Counted:
    """Bytes that this rank received, read off the calls of torch.distributed themselves."""

    def __init__(self, rank: int):
        self.total, self._rank = 0, rank

    @contextmanager
    def counting(self) -> Iterator[None]:
        originals = {
            name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast", "all_to_all_single")
        }

        def all_reduce(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.total += x.nbytes
            return originals["all_reduce"](x, *args, **kwargs)

        def all_gather(parts: list[Tensor], *args: Any, **kwargs: Any) -> Any:
            self.total += sum(part.nbytes for k, part in enumerate(parts) if k != self._rank)
            return originals["all_gather"](parts, *args, **kwargs)

        def broadcast(x: Tensor, src: int, *args: Any, **kwargs: Any) -> Any:
            self.total += 0 if src == self._rank else x.nbytes
            return originals["broadcast"](x, src, *args, **kwargs)

        def all_to_all_single(out: Tensor, x: Tensor, due: list[int], *args: Any, **kwargs: Any) -> Any:
            self.total += out.nbytes - due[self._rank] * out.element_size()
            return originals["all_to_all_single"](out, x, due, *args, **kwargs)

        patched = [all_reduce, all_gather, broadcast, all_to_all_single]
        for name, function in zip(originals, patched, strict=True):
            setattr(dist, name, function)
        try:
            yield
        finally:
            for name, function in originals.items():
                setattr(dist, name, function)


@dataclass(frozen=True)
class Traffic:
    """Bytes of each step as measured, as planned and as counted by the strategy, and whether it refreshed."""

    measured: list[int]
    planned: list[int]
    counted: list[int]
    refreshed: list[bool]


BYTES: dict[str, dict[str, Any]] = {
    "local": {"distributed": "local"},
    "local, thin": {"distributed": "local", "estimator": "implicit", "rank": 1, "refresh_every": 4},
    "local, rounded": {"distributed": "local", "wire_dtype": "bfloat16"},
    "global": {"distributed": "global"},
    "global, power 1": {"distributed": "global", "power": 1.0},
    "global, moving average": {"distributed": "global", "ema": 0.5},
    "global, some samples": {"distributed": "global", "curvature_samples": 0.5},
    "sharded": {"distributed": "sharded"},
    "sharded, rounded": {"distributed": "sharded", "wire_dtype": "bfloat16"},
    "sharded, implicit": {"distributed": "sharded", "estimator": "implicit", "rank": 1},
}


def counted(pre: Preconditioner) -> int:
    assert isinstance(pre.strategy, Ranks)
    return sum(pre.strategy.wire.received.values())


def traffic(rank: int, world: int) -> dict[str, dict[str, Any]]:
    found = {}
    for setting, options in BYTES.items():
        model = Net()
        pre = Preconditioner(model, **{"refresh_every": 2, **options})  # type: ignore[arg-type]
        pre.strategy.given_rates = BYTES_ALONE
        seen = Traffic([], [], [], [])
        for step in range(5):
            backward(model, step, rank, world)
            meter, before = Counted(rank), counted(pre)
            with meter.counting():
                pre.step()
            refreshed = step % pre.options.interval_at(step) == 0
            seen.measured.append(meter.total)
            seen.counted.append(counted(pre) - before)
            seen.planned.append(pre.plan.step_bytes[rank] + (pre.plan.refresh_bytes[rank] if refreshed else 0))
            seen.refreshed.append(refreshed)
        found[setting] = asdict(seen)
        pre.close()
    return found


WIDTHS = (24, 20, 28, 16, 24, 20, 28, 16, 24, 20, 28, 16, 24)


def memory(rank: int, world: int) -> tuple[int, int, int]:
    """Bytes of curvature on this rank, as planned for it, and of one process."""
    held = []
    for strategy in ("sharded", "none"):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(WIDTHS)))
        pre = Preconditioner(model, distributed=strategy, estimator="exact")
        x = torch.randn(12, WIDTHS[0])
        own = x if strategy == "none" else x.tensor_split(world)[rank]
        model(own).square().sum().mul(1 / 12 if strategy == "none" else world / 12).backward()
        if strategy != "none":
            average(model, world)
        pre.step()
        states = [own.state for own in pre._curvature.values()]
        nbytes = [state.vectors.nbytes + state.values.nbytes for state in states if isinstance(state, EigenState)]
        held.append(sum(nbytes) + sum(own.nbytes() for own in pre._curvature.values()))
        held += [pre.plan.held[rank]] if strategy != "none" else []
    return held[0], held[1], held[2]


def foretold(rank: int, world: int) -> dict[str, list[list[int]]]:
    """Bytes at a step and at a refresh and held on the busiest rank, as planned and as foretold from shapes."""
    found = {}
    x = torch.randn(6, WIDTHS[0])
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(WIDTHS)))
    network = Network(1e-5, 1e9)
    rows = {row.strategy: row for row in forecasts(model, x, [world], network, 1e9, refresh_every=3)}
    for strategy in ("local", "global", "sharded"):
        pre = Preconditioner(model, distributed=strategy, refresh_every=3)
        model.zero_grad()
        model(x).square().sum().backward()
        average(model, world)
        pre.step()
        row, plan = rows[strategy], pre.plan
        most = [max(plan.step_bytes), max(plan.refresh_bytes), max(plan.held), plan.interval]
        found[strategy] = [most, [row.step_bytes, row.refresh_bytes, row.held, row.interval]]
        pre.close()
    return found


def automatic(rank: int, world: int) -> str:
    """What "auto" says it chose."""
    model = Net()
    pre = Preconditioner(model, refresh_every=2)
    backward(model, 0, rank, world)
    before = pre.plan.name
    pre.step()
    assert before == "none"
    return str(pre.plan)
