"""Who does what and what it costs, from numbers alone: no process, no tensor.

Legend: M ranks. Bytes are those a rank receives (see ``wire``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

AGREEMENT = 4 * 8  # bytes of the one all-reduce of every step: may it be taken, and are all ranks at the same place


@dataclass(frozen=True)
class Load:
    """What one block costs.

    Args:
        refresh_flops: Operations of a refresh.
        apply_flops: Operations of one preconditioned gradient.
        held: Bytes its curvature takes.
        update: Bytes of its gradient on the wire.
        parts: Bytes of each rank's part of it, where it is cut among the ranks.
        parcels: Bytes of each rank's samples on the wire.
        columns: Columns of each rank's own factor.
        itemsize: Bytes of a number of its curvature.
        solution: Bytes of what a refresh makes of K.
        thin: Whether ``parcels`` are the thin factors of a correction, which may travel in place of it.
        repeatable: Whether ranks that compute the same direction from the same bits get the same bits.
    """

    refresh_flops: float = 0.0
    apply_flops: float = 0.0
    held: int = 0
    update: int = 0
    parts: tuple[int, ...] = ()
    parcels: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    itemsize: int = 4
    solution: int = 0
    thin: bool = False
    repeatable: bool = True

    def whole(self, rank: int) -> int:
        """Return what a rank receives to have the gradient whole."""
        return sum(self.parts) - self.parts[rank] if self.parts else 0

    def coefficients(self, ranks: int) -> int:
        """Return the bytes of so many ranks' coefficients and multipliers, which thin factors need at a step."""
        return ranks * (1 + max(self.columns, default=0)) * self.itemsize

    def direction(self, rank: int, writers: int) -> int:
        """Return what a rank receives of so many ranks' directions: sums on their way, where nothing is cut."""
        return self.parts[rank] * writers if self.parts else self.update


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: floating-point operations, and bytes a rank receives."""

    flops: float
    bandwidth: float


# orders of magnitude, to weigh bytes against operations: a core and a local network, a GPU and its interconnect
RATES = {"cpu": Rates(2e10, 1e9), "cuda": Rates(2e13, 2e10)}


@dataclass(frozen=True)
class Plan:
    """What a strategy does with a model.

    Args:
        name: The strategy.
        world: Ranks.
        owners: Rank that factorises each block; empty where every rank has curvature of its own.
        apart: Blocks whose curvature is on its owner alone.
        thin: Blocks that exchange thin factors at a refresh and coefficients at a step, in place of corrections.
        refresh_bytes: What each rank receives at a refresh, on top of a step.
        step_bytes: What each rank receives at every step.
        held: Bytes of curvature on each rank.
        refresh_flops: Operations of a refresh on each rank.
        step_flops: Operations of every step on each rank.
        interval: Steps between refreshes.
        reason: Why this strategy, where it was chosen.
    """

    name: str
    world: int
    owners: dict[str, int] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    thin: frozenset[str] = frozenset()
    refresh_bytes: tuple[int, ...] = (0,)
    step_bytes: tuple[int, ...] = (0,)
    held: tuple[int, ...] = (0,)
    refresh_flops: tuple[float, ...] = (0.0,)
    step_flops: tuple[float, ...] = (0.0,)
    interval: int = 1
    reason: str = "asked for"

    def seconds(self, rates: Rates) -> float:
        """Return the estimated time a step of the slowest rank, refreshes spread, nothing overlapped."""
        work = self._spread(self.refresh_flops, self.step_flops)
        moved = self._spread(self.refresh_bytes, self.step_bytes)
        return max(f / rates.flops + b / rates.bandwidth for f, b in zip(work, moved, strict=True))

    def _spread(self, refresh: tuple[float, ...], step: tuple[float, ...]) -> list[float]:
        return [own / self.interval + always for own, always in zip(refresh, step, strict=True)]

    def __str__(self) -> str:
        return (
            f"{self.name} over {self.world} ranks ({self.reason}): a rank receives at most {max(self.step_bytes):,} "
            f"bytes a step and {max(self.refresh_bytes):,} more at a refresh, holds {max(self.held):,} bytes of "
            f"curvature and computes {max(self._spread(self.refresh_flops, self.step_flops)):.1e} operations a step"
        )


def deal(costs: Mapping[str, float], world: int) -> dict[str, int]:
    """Give each block to a rank: the longest first, each to the rank with the least so far.

    No rank gets more than 4/3 - 1/(3 M) times the least possible maximum. Source: Graham (1969).
    """
    totals, owners = [0.0] * world, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = min(range(world), key=totals.__getitem__)
        totals[owners[name]] += costs[name]
    return owners


def shares(loads: Mapping[str, Load], interval: int) -> dict[str, float]:
    """Return each block's cost to its owner: its share of all operations plus its share of all bytes held."""
    work = {name: load.apply_flops + load.refresh_flops / interval for name, load in loads.items()}
    all_work, all_held = sum(work.values()) or 1.0, sum(load.held for load in loads.values()) or 1
    return {name: work[name] / all_work + load.held / all_held for name, load in loads.items()}


def plan_local(
    loads: Mapping[str, Load],
    world: int,
    interval: int,
    overhead: int,
    budget: int | None = None,
    rates: Rates | None = None,
) -> Plan:
    """Plan curvature of each rank's own samples, directions averaged.

    A thin block is exchanged as such where that is fewer bytes, which save more time than every rank's correction takes
    to compute, and, with a budget, where it fits beside the rest.

    Args:
        loads: By block, each for one rank's samples.
        world: M.
        interval: Steps between refreshes.
        overhead: Bytes of every refresh whatever the blocks.
        budget: Bytes of curvature a rank may hold.
        rates: What a rank computes and receives in a second; None: bytes alone count.
    """
    held, thin = sum(load.held for load in loads.values()), set()
    for name, load in loads.items():
        others, message = sum(load.parcels), load.coefficients(world - 1)
        fits = budget is None or held + others <= budget
        saved = load.update - others / interval - message
        dear = (world - 1) * load.apply_flops / rates.flops if rates else 0.0
        if world > 1 and load.thin and fits and saved > 0 and (rates is None or saved / rates.bandwidth > dear):
            thin.add(name)
            held += others
    step, refresh = [AGREEMENT] * world, [overhead] * world
    for name, load in loads.items():
        everyones, message = sum(load.parcels), load.coefficients(world - 1)
        for rank in range(world):
            if name in thin:
                step[rank] += message
                refresh[rank] += everyones - load.parcels[rank]
            else:
                step[rank] += load.whole(rank) + load.direction(rank, world - 1)
    refreshing = sum(load.refresh_flops for load in loads.values())
    applying = sum(load.apply_flops * (world if name in thin else 1) for name, load in loads.items())
    return Plan(
        "local", world, {}, frozenset(), frozenset(thin), tuple(refresh), tuple(step), (held,) * world,
        (refreshing,) * world, (applying,) * world, interval,
    )  # fmt: skip


def plan_dealt(
    name: str,
    loads: Mapping[str, Load],
    world: int,
    interval: int,
    overhead: int,
    everywhere: bool,
    owners: Mapping[str, int] | None = None,
) -> Plan:
    """Plan curvature of all ranks' samples, each block factorised by its owner.

    Args:
        name: The strategy's.
        loads: By block, each for the samples of all ranks.
        world: M.
        interval: Steps between refreshes.
        overhead: Bytes of every refresh whatever the blocks.
        everywhere: Whether all ranks hold all curvature, except where their directions could differ in bits.
        owners: Where blocks were dealt before; they stay there.
    """
    owners = dict(owners) if owners is not None else deal(shares(loads, interval), world)
    apart = frozenset(key for key, load in loads.items() if not everywhere or not load.repeatable)
    step, refresh = [AGREEMENT] * world, [overhead] * world
    held, refreshing, applying = [0] * world, [0.0] * world, [0.0] * world
    for key, load in loads.items():
        everyones = sum(load.parcels)
        for rank in range(world):
            own = owners[key] == rank
            if own or key not in apart:
                step[rank] += load.whole(rank)
                refresh[rank] += everyones - (load.parcels[rank] if load.parcels else 0)
                held[rank] += load.held
                applying[rank] += load.apply_flops
            if own:
                refreshing[rank] += load.refresh_flops
            elif key in apart:
                step[rank] += load.direction(rank, 1)
            else:
                refresh[rank] += load.solution
    return Plan(
        name, world, owners, apart, frozenset(), tuple(refresh), tuple(step), tuple(held), tuple(refreshing),
        tuple(applying), interval,
    )  # fmt: skip


def cheapest(plans: Iterable[Plan], rates: Rates, budget: int | None) -> Plan:
    """Return the plan with the least estimated time a step among those that fit the budget, or the smallest."""
    plans = list(plans)
    fitting = [plan for plan in plans if budget is None or max(plan.held) <= budget]
    if not fitting:
        return replace(min(plans, key=lambda plan: max(plan.held)), reason="it holds least")
    best = min(fitting, key=lambda plan: plan.seconds(rates))
    kept = ", ".join(f"{plan.name} {plan.seconds(rates) * 1e3:.2g} ms" for plan in fitting)
    return replace(best, reason=f"least estimated time a step of {kept}")
