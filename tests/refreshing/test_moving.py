"""Where saved curvature goes, without any process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest

from seng.distributed import Strategy
from seng.refreshing import Move, Place, move
from seng.refreshing.moving import Standing, fit_together, move_one

BYTES = {"a": 60, "b": 50, "c": 10}


@dataclass
class Offered(Strategy):
    name: str  # type: ignore[misc]
    rank: int = 0
    world: int = 1

    @property
    def pooled(self) -> bool:  # type: ignore[override]
        return self.name in ("global", "sharded")


def sharded(rank: int, world: int, owners: dict[str, int]) -> Place:
    return Place("sharded", rank, world, tuple(owners.items()), tuple(sorted(owners)))


OWNERS = {"a": 0, "b": 1, "c": 1}
HELD = [{"a": 60}, {"b": 50, "c": 10}]
SAVED = sharded(0, 2, OWNERS)


@pytest.mark.parametrize("rank", [0, 1])
def test_move_to_the_same_ranks_changes_nothing(rank: int) -> None:
    moved = move(sharded(rank, 2, OWNERS), HELD, [Offered("sharded", rank, 2)])
    assert moved == Move(sharded(rank, 2, OWNERS), dict.fromkeys(HELD[rank], rank))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_move_deals_every_block_to_one_rank_the_largest_first(world: int) -> None:
    moves = [move(sharded(0, 5, OWNERS), HELD, [Offered("sharded", rank, world)]) for rank in range(world)]
    taken = [set(moved.sources) for moved in moves if moved is not None]
    assert sorted(block for own in taken for block in own) == ["a", "b", "c"]
    assert [moved.sources.get("b", 1) for moved in moves if moved is not None] == [1] * world
    assert taken == [{"a"}, {"b", "c"} if world == 2 else {"b"}, {"c"}, set()][:world]
    assert len({moved.place.owners for moved in moves if moved is not None}) == 1


def test_move_to_one_process_takes_everything_and_back() -> None:
    everything = move(SAVED, HELD, [Offered("none")])
    assert everything == Move(Place("none", 0, 1), {"a": 0, "b": 1, "c": 1})
    back = move(Place("none", 0, 1), [BYTES], [Offered("global", 1, 2)])
    assert back is not None
    assert set(back.place.apart) == set(BYTES)  # owners alone, until a refresh brings the rest to all
    assert dict(back.place.owners) == {"a": 0, "b": 1, "c": 1}
    assert back.sources == {"b": 0, "c": 0}


def test_move_of_what_all_hold_stays_with_all() -> None:
    saved = Place("global", 1, 2, tuple(OWNERS.items()), ())
    moved = move(saved, [BYTES, BYTES], [Offered("global", 2, 3)])
    assert moved is not None
    assert moved.place.apart == ()
    assert set(moved.sources) == set(BYTES)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 3), (2, 3)])
def test_move_of_single_ranks_curvature_goes_round(rank: int, world: int) -> None:
    moved = move(Place("local", 0, 2, thin=("a",)), [{"a": 1}, {"a": 1}], [Offered("local", rank, world)])
    assert moved == Move(Place("local", rank, world), {"a": rank % 2})


def test_move_keeps_thin_factors_of_as_many_ranks() -> None:
    moved = move(Place("local", 0, 2, thin=("a",)), [{"a": 1}, {"a": 1}], [Offered("local", 1, 2)])
    assert moved is not None
    assert moved.place.thin == ("a",)


@pytest.mark.parametrize(
    ("saved", "held", "offered"),
    [
        (SAVED, HELD, [Offered("local", 0, 2)]),
        (Place("local", 0, 2), [{"a": 1}, {"a": 1}], [Offered("sharded", 0, 2)]),
        (Place("none"), [BYTES], [Offered("local", 0, 2), Offered("sharded", 0, 2)]),
    ],
)
def test_move_of_what_does_not_fit_is_none(saved: Place, held: list[dict[str, int]], offered: list[Strategy]) -> None:
    assert move(saved, held, offered) is None


GLOBAL = Place("global", 0, 2, tuple(OWNERS.items()))


@pytest.mark.parametrize("saved", [SAVED, GLOBAL, Place("local", 0, 2, thin=("a",)), Place()])
def test_state_of_this_rank_stays_where_it_is(saved: Place) -> None:
    offered = (
        [Offered(name, 0, 2) for name in ("local", "sharded", "global")] if saved.world == 2 else [Offered("none")]
    )
    assert move_one(saved, BYTES, offered) == Move(saved, dict.fromkeys(BYTES, 0))


@pytest.mark.parametrize(
    ("saved", "offered"),
    [
        (SAVED, Offered("sharded", 1, 2)),
        (SAVED, Offered("none")),
        (SAVED, Offered("sharded", 0, 3)),
        (Place("local", 0, 2), Offered("local", 1, 2)),
        (Place("local", 0, 2), Offered("local", 0, 3)),
        (Place("local", 0, 2), Offered("global", 0, 2)),
        (GLOBAL, Offered("local", 0, 2)),
    ],
)
def test_state_that_lacks_what_other_ranks_hold_is_not_moved(saved: Place, offered: Offered) -> None:
    assert move_one(saved, BYTES, [offered]) is None


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_state_that_all_hold_serves_every_rank(rank: int) -> None:
    for saved, name in product((GLOBAL, Place()), ("global", "sharded")):
        moved = move_one(saved, BYTES, [Offered(name, rank, 3)])
        assert moved is not None
        assert (moved.place.strategy, moved.place.rank, moved.place.world) == (name, rank, 3)
        assert set(moved.sources) == ({b for b in BYTES if b not in moved.place.apart} | owned(moved.place, rank))


def owned(place: Place, rank: int) -> set[str]:
    return {block for block, owner in place.owners if owner == rank}


@pytest.mark.parametrize("saved", [GLOBAL, Place("local", 1, 2), Place("sharded", 0, 1, (("a", 0),), ("a",))])
def test_one_process_takes_up_a_state_that_has_all_blocks(saved: Place) -> None:
    assert move_one(saved, BYTES, [Offered("none")]) == Move(Place("none", 0, 1), dict.fromkeys(BYTES, 0))


def standing(place: Place | None, last_refresh: int = 4, **means: float) -> Standing:
    return Standing(place, last_refresh, means, captured=0)


def test_ranks_go_on_with_one_plan_of_one_refresh() -> None:
    assert fit_together([standing(sharded(0, 2, OWNERS), a=1.0), standing(sharded(1, 2, OWNERS), b=2.0)])
    assert fit_together([standing(Place("local", rank, 2), a=float(rank)) for rank in range(2)])
    assert fit_together([standing(replace(GLOBAL, rank=rank), a=1.0) for rank in range(2)])


@pytest.mark.parametrize(
    "other",
    [
        standing(None), standing(GLOBAL, 3, a=1.0), standing(GLOBAL, -1), standing(GLOBAL, a=2.0),
        standing(Place("sharded", 1, 2, GLOBAL.owners), a=1.0), standing(replace(GLOBAL, apart=("a",)), a=1.0),
        standing(replace(GLOBAL, owners=()), a=1.0),
    ],
)  # fmt: skip
def test_ranks_do_not_go_on_where_one_differs(other: Standing) -> None:
    own = standing(GLOBAL, a=1.0)
    assert fit_together([own, own])
    assert not fit_together([own, other])
    assert not fit_together([other, own])
