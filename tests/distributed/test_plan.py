"""Plans: who does what and what it costs, without processes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seng.distributed.plan import AGREEMENT, Load, Plan, Rates, cheapest, deal, plan_dealt, plan_local, shares

OVERHEAD = 100
RATES = Rates(flops=1e9, bandwidth=1e6)
COSTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0.1, 100), min_size=1, max_size=7)


def load(world: int, size: int = 10, **changes: object) -> Load:
    values = {
        "refresh_flops": 1e4 * size, "apply_flops": 1e3 * size, "held": 100 * size, "update": 8 * size,
        "parcels": tuple(16 * size + rank for rank in range(world)), "columns": tuple(range(2, 2 + world)),
        "itemsize": 8, "solution": 50 * size,
    }  # fmt: skip
    return Load(**{**values, **changes})  # type: ignore[arg-type]


def loads(world: int) -> dict[str, Load]:
    return {name: load(world, size) for name, size in {"a": 9, "b": 4, "c": 3, "d": 2}.items()}


@given(costs=COSTS, world=st.integers(1, 4))
def test_deal_is_within_grahams_bound_of_the_best(costs: dict[str, float], world: int) -> None:
    owners = deal(costs, world)
    assert set(owners) == set(costs)

    def heaviest(placed: dict[str, int]) -> float:
        return max(sum(costs[name] for name, rank in placed.items() if rank == k) for k in range(world))

    if world ** len(costs) <= 5000:
        every = (dict(zip(costs, ranks, strict=True)) for ranks in itertools.product(range(world), repeat=len(costs)))
        assert heaviest(owners) <= (4 / 3 - 1 / (3 * world)) * min(map(heaviest, every)) * (1 + 1e-12)


@given(costs=COSTS, world=st.integers(1, 4))
def test_deal_does_not_depend_on_the_order_of_layers(costs: dict[str, float], world: int) -> None:
    assert deal(dict(reversed(costs.items())), world) == deal(costs, world)


def test_shares_are_parts_of_work_and_memory() -> None:
    found = shares(loads(2), interval=10)
    assert sum(found.values()) == pytest.approx(2)
    assert found["a"] > found["b"] > found["c"] > found["d"]


def test_thin_factors_pay_until_the_corrections_of_all_ranks_take_longer_than_bytes() -> None:
    own = {world: {"a": load(world, update=10_000, apply_flops=4e6, thin=True)} for world in (2, 3, 4)}
    rates = Rates(flops=1e9, bandwidth=1e6)  # 10 ms of bytes, 4 ms of work for each other rank
    assert [bool(plan_local(own[world], world, 100, OVERHEAD, None, rates).thin) for world in own] == [
        True,
        True,
        False,
    ]
    assert all(plan_local(own[world], world, 100, OVERHEAD).thin for world in own)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_local_receives_every_update_at_every_step(world: int) -> None:
    plan = plan_local(loads(world), world, 10, OVERHEAD)
    assert plan.step_bytes == (AGREEMENT + 8 * 18,) * world
    assert plan.refresh_bytes == (OVERHEAD,) * world
    assert plan.held == (1800,) * world
    assert not plan.owners


def test_thin_blocks_send_parcels_once_and_coefficients_at_steps() -> None:
    own = {"large": load(3, size=1000, parcels=(30, 20, 10), thin=True)}
    plan = plan_local(own, 3, 10, OVERHEAD)
    assert plan.thin == {"large"}
    assert plan.step_bytes == (AGREEMENT + 2 * (1 + 4) * 8,) * 3  # two others, a multiplier and the longest's columns
    assert plan.refresh_bytes == (OVERHEAD + 30, OVERHEAD + 40, OVERHEAD + 50)


@pytest.mark.parametrize(
    "changes", [{"thin": False}, {"parcels": (10**6, 10**6)}, {"update": 8}], ids=["not offered", "parcels", "update"]
)
def test_thin_exchange_is_taken_only_where_it_is_fewer_bytes(changes: dict[str, object]) -> None:
    own = {"a": load(2, **{"thin": True, "update": 10_000, **changes})}
    assert not plan_local(own, 2, 10, OVERHEAD).thin


def test_thin_factors_respect_the_budget() -> None:
    own = {"a": load(2, thin=True, update=10_000)}
    room = own["a"].held + sum(own["a"].parcels)
    assert plan_local(own, 2, 10, OVERHEAD, budget=room).thin
    assert not plan_local(own, 2, 10, OVERHEAD, budget=room - 1).thin


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_sharded_receives_what_it_does_not_own(world: int) -> None:
    own = loads(world)
    plan = plan_dealt("sharded", own, world, 10, OVERHEAD, everywhere=False)
    assert plan.apart == set(own)
    for rank in range(world):
        mine = [name for name, owner in plan.owners.items() if owner == rank]
        assert plan.step_bytes[rank] == AGREEMENT + sum(own[name].update for name in own if name not in mine)
        others = sum(sum(own[name].parcels) - own[name].parcels[rank] for name in mine)
        assert plan.refresh_bytes[rank] == OVERHEAD + others
        assert plan.held[rank] == sum(own[name].held for name in mine)
    assert sum(plan.held) == sum(one.held for one in own.values())


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_global_receives_nothing_between_refreshes(world: int) -> None:
    own = loads(world)
    plan = plan_dealt("global", own, world, 10, OVERHEAD, everywhere=True)
    assert plan.step_bytes == (AGREEMENT,) * world
    for rank in range(world):
        solved = sum(own[name].solution for name, owner in plan.owners.items() if owner != rank)
        samples = sum(sum(one.parcels) - one.parcels[rank] for one in own.values())
        assert plan.refresh_bytes[rank] == OVERHEAD + samples + solved
    assert plan.held == (sum(one.held for one in own.values()),) * world


def test_layers_that_are_not_repeatable_stay_with_their_owner() -> None:
    own = {**loads(2), "table": load(2, 5, repeatable=False)}
    plan = plan_dealt("global", own, 2, 10, OVERHEAD, everywhere=True)
    assert plan.apart == {"table"}
    other = 1 - plan.owners["table"]
    assert plan.step_bytes[other] == AGREEMENT + own["table"].update
    assert plan.step_bytes[1 - other] == AGREEMENT


def test_owners_stay_where_they_were() -> None:
    before = {"a": 1, "b": 1, "c": 1, "d": 0}
    assert plan_dealt("sharded", loads(2), 2, 10, OVERHEAD, everywhere=False, owners=before).owners == before


def test_cheapest_is_by_time_among_those_that_fit() -> None:
    nothing: dict[str, Any] = {"refresh_bytes": (0, 0), "refresh_flops": (0.0, 0.0), "step_flops": (0.0, 0.0)}
    slow = Plan("local", 2, step_bytes=(2000, 2000), held=(10, 10), **nothing)
    fast = Plan("global", 2, step_bytes=(1000, 1000), held=(90, 90), **nothing)
    assert slow.seconds(RATES) == pytest.approx(2e-3)
    assert cheapest([slow, fast], RATES, None).name == "global"
    assert cheapest([slow, fast], RATES, 50).name == "local"
    assert cheapest([fast, slow], RATES, 5).name == "local"
    assert "it holds least" in str(cheapest([fast, slow], RATES, 5))
    assert "global 1 ms" in cheapest([slow, fast], RATES, None).reason


def test_plan_spreads_refreshes_over_their_interval() -> None:
    plan = Plan("local", 1, refresh_bytes=(10_000,), refresh_flops=(2e7,), step_flops=(1e6,), interval=10)
    assert plan.seconds(RATES) == pytest.approx(1e-3 + 2e-3 + 1e-3)
