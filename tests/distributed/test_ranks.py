"""Strategies on 1, 2, 3 and 4 ranks, with uneven and empty shares of the batch, against one process."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from .harness import HUNG, Job, Outcome, run

EQUAL = 1e-9  # float64 directions of four steps; sums over ranks in another order reach 1e-14
ROUNDED = 2.0**-7  # bfloat16 keeps 8 bits: one rounding of samples and one of directions
SETTINGS = (
    "defaults", "power 1, held", "power 1, every step", "absolute, natural", "moving average", "truncated", "sum",
    "positions",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", ["global", "sharded"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_pooled_curvature_equals_one_process(laws: dict[int, Outcome], world: int, strategy: str, setting: str) -> None:
    assert laws[world].good()[0]["exact"][f"{strategy}: {setting}"] <= EQUAL


@pytest.mark.parametrize("strategy", ["global", "sharded"])
def test_pooled_curvature_of_three_ranks_equals_one_process(laws: dict[int, Outcome], strategy: str) -> None:
    assert laws[3].good()[0]["few_exact"][strategy] <= EQUAL


@pytest.mark.parametrize("strategy", ["global", "sharded"])
def test_layer_unused_on_one_rank_equals_one_process(laws: dict[int, Outcome], strategy: str) -> None:
    assert laws[2].good()[0]["branches"][strategy] <= EQUAL


@pytest.mark.parametrize("setting", ["defaults", "implicit"])
@pytest.mark.parametrize("strategy", ["global", "sharded", "local"])
def test_layers_of_several_parts_equal_one_process(laws: dict[int, Outcome], strategy: str, setting: str) -> None:
    assert laws[2].good()[0]["every_layer"][f"{strategy}: {setting}"] <= EQUAL


@pytest.mark.parametrize("world", [1, 2, 4])
def test_pooled_curvature_of_some_samples_is_the_dense_oracles(laws: dict[int, Outcome], world: int) -> None:
    errors = laws[world].good()[0]["some_samples"]
    assert len(errors) == 8
    assert max(errors.values()) <= EQUAL


def test_gradients_cleared_on_one_rank_leave_no_layer_out(laws: dict[int, Outcome]) -> None:
    for result in laws[2].good():
        assert len(result["cleared_on_one"]) == 6
        assert not any(result["cleared_on_one"].values()), result["cleared_on_one"]


@pytest.mark.parametrize("setting", ["defaults", "power 1, every step", "moving average", "thin", "some samples"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_local_is_the_mean_of_directions_taken_one_by_one(laws: dict[int, Outcome], world: int, setting: str) -> None:
    assert laws[world].good()[0]["averaged"][setting] <= EQUAL


@pytest.mark.parametrize("batches", ["previous", "current"])
@pytest.mark.parametrize("case", ["thin at last", "thin at first", "sizes"])
def test_plans_that_change_between_thin_and_whole_change_no_direction(
    laws: dict[int, Outcome], case: str, batches: str
) -> None:
    first, second = (result["plans_change"][f"{case}, {batches}"] for result in laws[2].good())
    assert first == second  # by their hashes, bit for bit
    error, _, thin, whole = first
    assert error <= EQUAL
    assert min(thin) < max(thin)
    assert whole == [0]


def test_replicas_stay_bit_equal_for_a_hundred_steps(laws: dict[int, Outcome]) -> None:
    first, second = (result["replicas"] for result in laws[2].good())
    assert first == second
    assert all(start != end for start, end in first.values())


@pytest.mark.parametrize("strategy", ["local", "global", "sharded"])
def test_rounding_on_the_wire_is_that_of_bfloat16(laws: dict[int, Outcome], strategy: str) -> None:
    assert 0 < laws[2].good()[0]["rounding"][strategy] <= ROUNDED


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_are_those_of_the_plan(laws: dict[int, Outcome], world: int) -> None:
    for result in laws[world].good():
        for setting, seen in result["traffic"].items():
            assert seen["measured"] == seen["planned"], setting
            assert seen["counted"] == seen["measured"], setting


def test_between_refreshes_the_documented_minimum_travels(laws: dict[int, Outcome]) -> None:
    from seng.distributed.plan import AGREEMENT

    from .scenarios import Net

    covered = sum(p.nbytes for name, p in Net().named_parameters() if name != "gain")
    for result in laws[4].good():
        between = {name: seen["measured"][1] for name, seen in result["traffic"].items()}
        assert between["local"] == AGREEMENT + covered
        assert between["local, rounded"] == AGREEMENT + covered // 4
        assert between["local, thin"] < between["local"]
        assert between["global"] == AGREEMENT
        assert between["sharded"] < between["local"]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_sharded_memory_is_one_part_in_ranks(laws: dict[int, Outcome], world: int) -> None:
    for result in laws[world].good():
        held, planned, alone = result["memory"]
        assert held <= 1.2 / world * alone
        assert planned <= 1.2 / world * alone


@pytest.mark.parametrize("strategy", ["local", "global", "sharded"])
def test_bytes_foretold_from_shapes_are_those_of_the_run_s_plan(laws: dict[int, Outcome], strategy: str) -> None:
    for result in laws[2].good():
        planned, foretold = result["foretold"][strategy]
        assert planned == foretold


def test_auto_says_what_it_chose_and_why(laws: dict[int, Outcome]) -> None:
    said = [result["automatic"] for result in laws[2].good()]
    assert said[0] == said[1]
    assert "over 2 ranks (least estimated time a step of local" in said[0]


@pytest.mark.parametrize("setting", ["local", "local, thin", "global", "sharded", "auto"])
def test_resumed_ranks_continue_bit_for_bit(laws: dict[int, Outcome], setting: str) -> None:
    assert all(result["resumed"][setting] for result in laws[2].good())


def test_state_of_another_number_of_ranks_begins_with_a_refresh(laws: dict[int, Outcome]) -> None:
    for result in laws[2].good():
        assert result["moved"]["refreshed"]
        assert result["moved"]["steps"] == 2


@pytest.mark.parametrize("strategy", ["local", "global", "sharded", "auto"])
def test_bad_batch_or_loss_on_one_rank_is_skipped_on_all(laws: dict[int, Outcome], strategy: str) -> None:
    first, second = (result["spoiled"][strategy] for result in laws[2].good())
    assert first == second
    hashes = first["hashes"]
    assert [a == b for a, b in pairwise(hashes)] == [True, False, True, False]
    assert first["counters"]["skipped_steps"] == 2
    assert first["steps"] == 3


@pytest.mark.parametrize("strategy", ["local", "global", "sharded", "auto"])
def test_error_on_one_rank_is_told_to_all_who_can_go_on(laws: dict[int, Outcome], strategy: str) -> None:
    others, own = (result["one_fails"][strategy] for result in laws[2].good())
    assert own[0].startswith("OrderError: step(): no gradients")
    assert own[1].startswith("CaptureError: step(): a layer's input was modified in place")
    assert all("another rank could not take this step" in said and "rank 1" in said for said in others[:2])
    assert own[2] == others[2] == ""


def test_samples_of_pooled_ranks_count_together(laws: dict[int, Outcome]) -> None:
    for result in laws[2].good():
        assert "first batch is too small" in result["first_batch_too_small"]["local"]
        assert result["first_batch_too_small"]["sharded"] == "True"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("damping", ("0.1", "0.2")),
        ("seed", ("0", "1")),
        ("refresh_every", ("10", "3")),
        ("dtypes", ("torch.float64", "torch.float32")),
        ("gradients", ("all", "all but body.0.weight")),
    ],
)
def test_options_that_differ_are_named(laws: dict[int, Outcome], name: str, values: tuple[str, str]) -> None:
    for result in laws[2].good():
        said = result["mismatched"][name]
        assert f"ranks differ in {name}: expected the same on every rank" in said
        assert f"{{0: {values[0]!r}, 1: {values[1]!r}}}" in said


def test_models_that_differ_are_named_by_the_option_behind_them(laws: dict[int, Outcome]) -> None:
    assert all("ranks differ in exclude" in result["mismatched"]["exclude"] for result in laws[2].good())


def test_rank_killed_in_a_refresh_ends_the_others_with_an_error(faults: dict[str, Outcome]) -> None:
    outcome = faults["killed"]
    assert outcome.codes == [0, 0, -9], outcome.said
    for result in outcome.results[:2]:
        assert result["killed"].startswith("RankError: step(): the ranks cannot reach each other")


def test_rank_that_does_not_come_ends_the_others_at_the_timeout(faults: dict[str, Outcome]) -> None:
    told, _ = faults["absent"].good()  # the other rank waits until the first was told
    assert told["absent"].startswith("RankError: step(): the ranks cannot reach each other")


def test_ranks_that_hang_are_found(tmp_path: Path) -> None:
    outcome = run(tmp_path, [Job(2, ("faults.stuck",))], limit=1.0)[0]
    assert outcome.codes == [HUNG, HUNG]
    with pytest.raises(AssertionError):
        outcome.good()


def test_failed_ranks_are_told_apart(tmp_path: Path) -> None:
    outcome: Any = run(tmp_path, [Job(1, ("faults.nowhere",))], limit=20.0)[0]
    assert outcome.codes == [1]
    assert "nowhere" in outcome.said[0]
