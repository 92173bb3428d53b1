"""Whether ranks go on with the curvature of the states they have loaded, or make it anew: all of them do the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .moving import Place
from .refresh import Refreshes


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


def go_on(refreshes: Refreshes, last_refresh: int, captured: int) -> tuple[bool, bool]:
    """Go on with the curvature held where every rank can; else let go of it on all. A collective call.

    Args:
        refreshes: What is held.
        last_refresh: Step of its refresh, -1 before the first.
        captured: The samples that this rank has captured, -1 where its layers were not listened to.

    Returns:
        Whether the curvature stays, and whether a refresh can follow at once.
    """
    sharing, held, thin = refreshes.sharing, refreshes.curvature, refreshes.thin
    moved = sharing.moved(held, thin.carriers)
    means = {name: float(held[name].mean) for name in moved.sources} if moved else {}
    own = Standing(moved and moved.place, last_refresh, means, captured)
    everyone = sharing.strategy.wire.gather(own)
    if moved is not None and fit_together(everyone):
        sharing.go_on_from(moved.place)
        refreshes.curvature = {name: held[name] for name in moved.sources}
        thin.carriers = {name: thin.carriers[name] for name in moved.place.thin}
    else:
        moved = None
        sharing.start_anew()
        refreshes.curvature, thin.carriers = {}, {}
    refreshes.reach.restore(refreshes.curvature)
    captures = [standing.captured for standing in everyone]
    return moved is not None, min(captures) >= 0 and max(captures) > 0


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
