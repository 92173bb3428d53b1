"""The alpha-beta model against sums done by hand."""

from __future__ import annotations

import pytest

from seng.distributed.plan import AGREEMENT, Load, Plan, plan_dealt, plan_local
from seng.distributed.wire import BUCKET
from seng.errors import OptionError
from seng.planning.network import Machine, Network, forecast, plain

RING, TREE = Network(1e-3, 1e6), Network(1e-3, 1e6, "tree")  # a message: 1 ms and 1 microsecond a byte
MACHINE = Machine(step=0.5, gradient=8000, refresh_flops=1e6, step_flops=5e5)


@pytest.mark.parametrize(
    ("call", "ring", "tree"),
    [
        ("all_reduce", 2 * 3 * (1e-3 + 2e-3), 2 * 2 * (1e-3 + 8e-3)),
        ("all_gather", 3 * (1e-3 + 2e-3), 3 * (1e-3 + 2e-3)),
        ("broadcast", (2e-3 + 6e-3) + 3 * (1e-3 + 2e-3), 2 * (1e-3 + 8e-3)),
        ("all_to_all", 3e-3 + 8e-3, 3e-3 + 8e-3),
    ],
)
def test_calls_of_four_ranks_take_what_they_take_by_hand(call: str, ring: float, tree: float) -> None:
    assert getattr(RING, call)(8000, 4) == pytest.approx(ring)
    assert getattr(TREE, call)(8000, 4) == pytest.approx(tree)


@pytest.mark.parametrize("network", [RING, TREE])
@pytest.mark.parametrize("call", ["all_reduce", "all_gather", "broadcast"])
def test_calls_of_one_rank_take_nothing(network: Network, call: str) -> None:
    assert getattr(network, call)(8000, 1) == 0


def test_ring_takes_twice_the_bytes_whatever_the_ranks_where_latency_is_nothing() -> None:
    fast = Network(0.0, 1e6)
    for ranks in (2, 64, 4096):
        assert fast.all_reduce(1e6, ranks) == pytest.approx(2 * (ranks - 1) / ranks)


def test_tree_is_for_many_ranks_and_small_messages() -> None:
    assert TREE.all_reduce(AGREEMENT, 1024) < RING.all_reduce(AGREEMENT, 1024)
    assert TREE.all_reduce(1e9, 1024) > RING.all_reduce(1e9, 1024)


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(OptionError, match=r"unknown shape: expected 'ring' \| 'tree', got 'star'"):
        Network(1.0, 1.0, "star").all_reduce(1.0, 2)


def test_plain_step_is_the_measured_one_and_an_all_reduce() -> None:
    assert plain(4, MACHINE, RING).seconds == pytest.approx(0.5 + RING.all_reduce(8000, 4))
    assert plain(1, MACHINE, RING).seconds == 0.5


def loads(world: int) -> dict[str, Load]:
    common = {"held": 10, "itemsize": 4, "solution": 3000, "columns": (5,) * world}
    return {
        "a": Load(2e4, 3e3, update=6000, parcels=(500,) * world, **common),  # type: ignore[arg-type]
        "b": Load(1e4, 1e3, update=2000, parcels=(100,) * world, thin=True, **common),  # type: ignore[arg-type]
    }


def test_local_step_is_work_an_all_reduce_and_coefficients() -> None:
    own = loads(2)
    plan = plan_local(own, 2, 10, overhead=64)
    assert plan.thin == {"b"}
    expected = (
        plain(2, MACHINE, RING).seconds
        + 3e4 / 10 / 1e6
        + (3e3 + 2 * 1e3) / 5e5
        + RING.all_reduce(AGREEMENT, 2)
        + RING.all_reduce(6000, 2)
        + RING.all_gather(2 * 6 * 4, 2)
        + (2 * RING.all_gather(64, 2) + 2 * RING.broadcast(100, 2)) / 10
    )
    found = forecast(plan, own, 64, MACHINE, RING)
    assert found.seconds == pytest.approx(expected)
    assert (found.step_bytes, found.refresh_bytes, found.held) == (32 + 6000 + 24, 64 + 100, 10 + 10 + 2 * 100)


def test_sharded_step_is_the_busiest_ranks_work_and_broadcasts() -> None:
    own = loads(2)
    plan = plan_dealt("sharded", own, 2, 10, 64, everywhere=False)
    assert plan.owners == {"a": 0, "b": 1}
    expected = (
        plain(2, MACHINE, RING).seconds
        + 2e4 / 10 / 1e6
        + 3e3 / 5e5
        + RING.all_reduce(AGREEMENT, 2)
        + RING.broadcast(6000, 2)
        + RING.broadcast(2000, 2)
        + (2 * RING.all_gather(64, 2) + RING.all_to_all(500, 2)) / 10
    )
    assert forecast(plan, own, 64, MACHINE, RING).seconds == pytest.approx(expected)


def test_global_step_is_an_agreement_and_its_refresh_broadcasts_samples_and_solutions() -> None:
    own = loads(2)
    plan = plan_dealt("global", own, 2, 10, 64, everywhere=True)
    refresh = 2 * RING.all_gather(64, 2) + 2 * RING.broadcast(600, 2) + 2 * RING.broadcast(3000, 2)
    work = 2e4 / 10 / 1e6 + 4e3 / 5e5
    expected = plain(2, MACHINE, RING).seconds + work + RING.all_reduce(AGREEMENT, 2) + refresh / 10
    assert forecast(plan, own, 64, MACHINE, RING).seconds == pytest.approx(expected)


def test_one_process_does_its_work_and_sends_nothing() -> None:
    plan = Plan("none", 1, refresh_flops=(1e6,), step_flops=(1e5,), interval=10)
    assert forecast(plan, {}, 0, MACHINE, RING).seconds == pytest.approx(0.5 + 0.1 + 0.2)


def test_parts_of_gradients_are_exchanged_twice() -> None:
    own = {"a": Load(update=6000, parts=(3000, 3000), parcels=(500, 500), columns=(5, 5))}
    plan = plan_local(own, 2, 10, overhead=64)
    gap = forecast(plan, own, 64, MACHINE, RING).seconds - plain(2, MACHINE, RING).seconds
    shared = RING.all_reduce(AGREEMENT, 2) + 2 * RING.all_gather(64, 2) / 10
    assert gap == pytest.approx(shared + 2 * RING.all_to_all(3000, 2))


def test_large_gradients_go_in_buckets() -> None:
    large = Machine(0.0, 3 * BUCKET, 1.0, 1.0)
    assert plain(2, large, RING).seconds == pytest.approx(3 * RING.all_reduce(BUCKET, 2))
