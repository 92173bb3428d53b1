"""Where curvature goes when a run continues, on as many ranks as before or on others, and whether it can. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..distributed import Strategy
from ..distributed.plan import deal


@dataclass(frozen=True)
class Place:
    """By whom held curvature was made.

    Args:
        strategy: Name of the strategy.
        rank: The rank it is held on.
        world: Number of ranks.
        owners: Rank that factorises each block.
        apart: Blocks that their owner alone holds.
        thin: Blocks whose thin factors all ranks hold.
    """

    strategy: str = "none"
    rank: int = 0
    world: int = 1
    owners: tuple[tuple[str, int], ...] = ()
    apart: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Move:
    """What this rank is to hold.

    Args:
        place: By whom it is held from now on.
        sources: By block, the saved rank to take its curvature from.
    """

    place: Place
    sources: dict[str, int]


def move(saved: Place, held: Sequence[Mapping[str, int]], offered: Sequence[Strategy]) -> Move | None:
    """Return what this rank takes of a saved run's curvature; None where none of it fits, so that it is made anew.

    Curvature of all ranks' samples says nothing of how many there were: it goes from one process to pooled strategies
    and back, and its blocks are dealt anew by their bytes. Of curvature of its own samples, rank m of M takes that of
    saved rank m modulo their number.

    Args:
        saved: The place of any rank of the saved run.
        held: By saved rank, the bytes of each block's curvature.
        offered: The strategies this run may use; several where "auto" has not settled.
    """
    own = next((strategy for strategy in offered if strategy.name == saved.strategy), None)
    own = own or (offered[0] if len(offered) == 1 else None)
    if own is None:
        return None
    of_all = bool(saved.owners) or len(held) == 1
    if own.pooled or (own.world == 1 and saved.owners):
        return _of_all_samples(saved, held, own) if of_all else None
    if saved.owners:
        return None
    source, same = own.rank % len(held), own.world == len(held)
    place = Place(own.name, own.rank, own.world, thin=saved.thin if same else ())
    return Move(place, dict.fromkeys(held[source], source))


def move_one(saved: Place, held: Mapping[str, int], offered: Sequence[Strategy]) -> Move | None:
    """Return what this rank takes of one rank's state, without the others'; None where those hold what it lacks.

    It is this rank's own state, or holds all blocks of curvature that is the same on all ranks, or serves one process.

    Args:
        saved: The place of the state.
        held: The bytes of each block's curvature in it.
        offered: The strategies this run may use.
    """
    own = next((strategy for strategy in offered if strategy.name == saved.strategy), None)
    if own is not None and (own.rank, own.world) == (saved.rank, saved.world):
        return Move(saved, dict.fromkeys(held, saved.rank))
    shared = bool(saved.owners) or offered[0].world == 1
    if saved.world > 1 and (saved.apart or not shared):
        return None
    return move(saved, [held] * saved.world, offered)


def _of_all_samples(saved: Place, held: Sequence[Mapping[str, int]], own: Strategy) -> Move:
    holders = {block: rank for rank in reversed(range(len(held))) for block in held[rank]}
    if not own.pooled:
        return Move(Place(own.name, own.rank, own.world), holders)
    settled = own.world == saved.world and saved.owners
    owners = dict(saved.owners) if settled else deal({b: held[rank][b] for b, rank in holders.items()}, own.world)
    # where all ranks held what another strategy keeps apart, or the reverse, owners alone serve until the next refresh
    apart = saved.apart if own.name == saved.strategy else tuple(sorted(owners))
    mine = {block: rank for block, rank in holders.items() if block not in apart or owners[block] == own.rank}
    if settled:
        mine = {block: own.rank if block in held[own.rank] else rank for block, rank in mine.items()}
    return Move(Place(own.name, own.rank, own.world, tuple(owners.items()), apart), mine)


@dataclass(frozen=True)
class Standing:
    """What a rank could go on with.

    Args:
        place: By whom its curvature was made; None where it lacks what other ranks hold.
        last_refresh: When.
        means: By block, the mean eigenvalue of what it holds.
        captured: The samples it has captured, -1 where its layers were not listened to.
    """

    place: Place | None
    last_refresh: int
    means: dict[str, float]
    captured: int


def fit_together(everyone: Sequence[Standing]) -> bool:
    """Return whether ranks can go on: one plan, one refresh, and of what several hold the same. Pure."""
    first, means = everyone[0], dict[str, float]()
    if first.place is None or first.last_refresh < 0:
        return False
    plan = replace(first.place, rank=0)
    for own in everyone:
        same = own.place is not None and replace(own.place, rank=0) == plan and own.last_refresh == first.last_refresh
        if not same:
            return False
    pairs = [pair for own in everyone for pair in own.means.items()] if plan.owners else []
    return all(means.setdefault(name, mean) == mean for name, mean in pairs)
