"""Seconds of a step on many ranks, from plans alone, by the alpha-beta model.

A message of b bytes takes alpha + b beta. Legend: M ranks, alpha seconds a message (latency), beta seconds a byte (one
over the bandwidth). Nothing is overlapped, so what is foretold is the most that a step should take. Source: Thakur,
Rabenseifner, Gropp (2005), "Optimization of Collective Communication Operations in MPICH".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from ..distributed.plan import AGREEMENT, Load, Plan
from ..distributed.wire import BUCKET
from ..errors import choose


@dataclass(frozen=True)
class Network:
    """What lies between ranks.

    Args:
        latency: alpha, seconds.
        bandwidth: 1 / beta, bytes a second, of one rank.
        shape: "ring" or "tree": the form of all-reduces and broadcasts. Rings send each byte twice whatever M is, in
            M - 1 messages; trees send all bytes at each of their log2 M levels.
    """

    latency: float
    bandwidth: float
    shape: str = "ring"

    def all_reduce(self, nbytes: float, ranks: int) -> float:
        """Return the seconds until all have a sum: 2 (M - 1) (alpha + b beta / M), or 2 log2 M (alpha + b beta)."""
        return 2 * self._passes(nbytes, ranks)

    def all_gather(self, nbytes: float, ranks: int) -> float:
        """Return the seconds until all ranks have all parts, ``nbytes`` together: (M - 1) (alpha + b beta / M)."""
        return (ranks - 1) * self._message(nbytes / ranks)

    def broadcast(self, nbytes: float, ranks: int) -> float:
        """Return the seconds until all have one's buffer: a ring deals it out, then gathers; a tree hands it on."""
        deal_out = _levels(ranks) * self.latency + (ranks - 1) / ranks * nbytes / self.bandwidth
        return self._choose(deal_out + self.all_gather(nbytes, ranks), _levels(ranks) * self._message(nbytes))

    def all_to_all(self, received: float, ranks: int) -> float:
        """Return the seconds until the busiest rank has what others sent to it: (M - 1) alpha + b beta."""
        return (ranks - 1) * self.latency + received / self.bandwidth

    def _passes(self, nbytes: float, ranks: int) -> float:
        return self._choose(self.all_gather(nbytes, ranks), _levels(ranks) * self._message(nbytes))

    def _message(self, nbytes: float) -> float:
        return self.latency + nbytes / self.bandwidth

    def _choose(self, ring: float, tree: float) -> float:
        return choose({"ring": ring, "tree": tree}, self.shape, call="Network()", option="shape")


@dataclass(frozen=True)
class Machine:
    """What one rank does.

    Args:
        step: Seconds of forward, backward and the base's step on a rank's samples, as measured or estimated.
        gradient: Bytes of the gradient that replicas average.
        refresh_flops: Operations a second of a refresh, matrix products and factorisations.
        step_flops: Operations a second of preconditioning, products of U and vectors, bound by memory.
    """

    step: float
    gradient: int
    refresh_flops: float
    step_flops: float


@dataclass(frozen=True)
class Forecast:
    """One strategy on so many ranks.

    Args:
        strategy: Its name; "plain" without curvature.
        ranks: M.
        seconds: Of a step, refreshes spread over their interval.
        step_bytes: What the busiest rank receives at a step for the strategy, beside the gradients' average.
        refresh_bytes: What it receives at a refresh on top.
        held: Bytes of curvature on the fullest rank.
        interval: Steps between refreshes.
    """

    strategy: str
    ranks: int
    seconds: float
    step_bytes: int = 0
    refresh_bytes: int = 0
    held: int = 0
    interval: int = 1


def plain(ranks: int, machine: Machine, network: Network) -> Forecast:
    """Return what a step takes without curvature."""
    return Forecast("plain", ranks, machine.step + _sums(machine.gradient, ranks, network))


def forecast(plan: Plan, loads: Mapping[str, Load], overhead: int, machine: Machine, network: Network) -> Forecast:
    """Return what a step takes under a plan: that without curvature, the busiest rank's work, and what travels."""
    work = max(
        refresh / plan.interval / machine.refresh_flops + step / machine.step_flops
        for refresh, step in zip(plan.refresh_flops, plan.step_flops, strict=True)
    )
    travels = _at_a_step(plan, loads, network) + _at_a_refresh(plan, loads, overhead, network) / plan.interval
    seconds = plain(plan.world, machine, network).seconds + work + travels
    most = max(plan.step_bytes), max(plan.refresh_bytes), max(plan.held)
    return Forecast(plan.name, plan.world, seconds, *most, plan.interval)


def _at_a_step(plan: Plan, loads: Mapping[str, Load], network: Network) -> float:
    if plan.name == "none":
        return 0.0
    seconds, own = network.all_reduce(AGREEMENT, plan.world), _by_owner(plan, loads)
    if any(load.parts for load in loads.values()):  # gradients that are cut: two exchanges of the busiest rank's bytes
        return seconds + 2 * network.all_to_all((max(plan.step_bytes) - AGREEMENT) / 2, plan.world)
    if not plan.owners:
        thin = sum(loads[name].coefficients(plan.world) for name in plan.thin)
        whole = sum(load.update for name, load in loads.items() if name not in plan.thin)
        return seconds + _sums(whole, plan.world, network) + (network.all_gather(thin, plan.world) if thin else 0.0)
    sizes = (sum(load.update for name, load in owned.items() if name in plan.apart) for owned in own)
    return seconds + _broadcasts(sizes, plan.world, network)


def _at_a_refresh(plan: Plan, loads: Mapping[str, Load], overhead: int, network: Network) -> float:
    """Return the seconds of the census and the table of means, of samples, and of what owners solved."""
    world = plan.world
    if world == 1:
        return 0.0
    seconds = 2 * network.all_gather(overhead * world / (world - 1) / 2, world)
    shared = {
        name: load for name, load in loads.items() if name in plan.thin or (plan.owners and name not in plan.apart)
    }
    sent = (sum(load.parcels[rank] for load in shared.values() if load.parcels) for rank in range(world))
    seconds += _broadcasts(sent, world, network)
    if not plan.owners:
        return seconds
    own = _by_owner(plan, loads)
    solved = (sum(load.solution for name, load in owned.items() if name in shared) for owned in own)
    due = (sum(sum(load.parcels) for name, load in owned.items() if name in plan.apart) for owned in own)
    most = (world - 1) / world * max(due, default=0)
    return seconds + _broadcasts(solved, world, network) + (network.all_to_all(most, world) if most else 0.0)


def _by_owner(plan: Plan, loads: Mapping[str, Load]) -> list[dict[str, Load]]:
    owned: dict[int, dict[str, Load]] = {}
    for name, load in loads.items():
        owned.setdefault(plan.owners.get(name, 0), {})[name] = load
    return list(owned.values())


def _sums(nbytes: int, ranks: int, network: Network) -> float:
    """Return the seconds of all-reduces of a gradient in buckets."""
    count = ceil(nbytes / BUCKET)
    return count * network.all_reduce(nbytes / count, ranks) if count and ranks > 1 else 0.0


def _broadcasts(sizes: Iterable[float], ranks: int, network: Network) -> float:
    """Return the seconds of broadcasts of several ranks' bytes in buckets, one after the other."""
    counts = [(nbytes, ceil(nbytes / BUCKET)) for nbytes in sizes if nbytes]
    return sum(count * network.broadcast(nbytes / count, ranks) for nbytes, count in counts) if ranks > 1 else 0.0


def _levels(ranks: int) -> int:
    return (ranks - 1).bit_length()
