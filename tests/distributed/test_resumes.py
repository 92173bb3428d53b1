"""Ranks that load states, whoever saved them, and process groups that come late, go or change: replicas stay equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed as dist

from .harness import Outcome

SETTINGS = ("local", "local, thin", "global", "sharded", "auto")
LOADS = ("own", "first", "rotated", "mixed")
HALF, STEPS, INTERVAL = 3, 9, 5  # steps before a state, all of them, and between refreshes
EQUAL = 1e-9  # float64 parameters after nine steps; sums over ranks in another order reach 1e-14
POOLED = ("global", "sharded")
NAMED = [name for name in SETTINGS if name != "auto"]

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def told(outcome: Outcome, scenario: str) -> list[Any]:
    return [result[scenario] for result in outcome.good()]


def same(outcome: Outcome, scenario: str) -> Any:
    """Return what all ranks tell alike: replicas are equal bit for bit, by their hashes."""
    found = told(outcome, scenario)
    assert all(other == found[0] for other in found)
    return found[0]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("world", ["2", "3"])
def test_replicas_go_on_equal_whichever_rank_s_state_each_loads(
    resumes: dict[str, Outcome], world: str, setting: str, load: str
) -> None:
    seen = same(resumes[world], "loaded")[setting]
    if load == "own" or setting == "global":  # every rank has what it needs
        assert seen[load]["hash"] == seen["whole"]["hash"]
        assert (seen[load]["first"], seen[load]["remade"]) == (0, 0)
    else:
        assert (seen[load]["first"], seen[load]["remade"]) == (HALF, 1)
    assert (seen[load]["steps"], seen[load]["skipped"]) == (STEPS, 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_state_that_was_loaded_is_saved_as_it_came(resumes: dict[str, Outcome], setting: str) -> None:
    assert all(seen[load]["again"] for own in told(resumes["3"], "loaded") for seen in [own[setting]] for load in LOADS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_state_loads_into_an_optimizer_that_has_trained_on(resumes: dict[str, Outcome], setting: str) -> None:
    fresh, again = same(resumes["2"], "loaded")[setting]["first"], same(resumes["2"], "loaded_in_place")[setting]
    assert (again["refreshed"], again["steps"]) == (fresh["refreshed"], STEPS)


@pytest.mark.parametrize(
    ("fact", "values"), [("step", ("1", "2")), ("seed", ("7", "0")), ("state_loaded", ("True", "False"))]
)
def test_states_that_differ_are_named_on_all_ranks(
    resumes: dict[str, Outcome], fact: str, values: tuple[str, str]
) -> None:
    said = same(resumes["2"], "disagreeing")[fact]
    assert said.startswith(f"RankError: step(): ranks differ in {fact}: expected the same on every rank")
    assert f"{{0: {values[0]!r}, 1: {values[1]!r}}}" in said


@pytest.mark.parametrize("setting", NAMED)
@pytest.mark.parametrize(("source", "world"), [(2, 1), (3, 1), (1, 2), (3, 2), (1, 3), (2, 3)])
def test_first_rank_s_state_serves_other_numbers_of_ranks(
    resumes: dict[str, Outcome], source: int, world: int, setting: str
) -> None:
    seen = same(resumes[f"{world}, taken"], "taken")[f"{source} {setting}"]
    whole = source == 1 or world == 1 if "local" in setting else source == 1 or setting == "global"
    assert (seen["remade"], seen["refreshed"]) == ((0, INTERVAL) if whole else (1, HALF + INTERVAL))
    if whole and setting in POOLED:  # the samples of all ranks are the same, however many there are
        there = same(resumes["2"], "loaded")[setting]["parameters"]
        assert torch.dist(torch.tensor(seen["parameters"]), torch.tensor(there)) <= EQUAL
    assert seen["steps"] == STEPS


@pytest.mark.parametrize("setting", SETTINGS)
def test_group_that_comes_after_the_optimizer_is_as_one_before(resumes: dict[str, Outcome], setting: str) -> None:
    early, late = same(resumes["2, groups"], "late")[setting]
    assert early == late


@pytest.mark.parametrize("setting", SETTINGS)
def test_model_may_be_wrapped_after_the_optimizer_was_made(resumes: dict[str, Outcome], setting: str) -> None:
    assert same(resumes["2, groups"], "wrapped_later")[setting]


@pytest.mark.parametrize("setting", SETTINGS)
def test_group_made_anew_changes_nothing(resumes: dict[str, Outcome], setting: str) -> None:
    groups = told(resumes["2, groups"], "changed")[0]
    assert groups[f"made anew: {setting}"] == told(resumes["2"], "loaded")[0][setting]["whole"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_ranks_of_other_numbers_make_curvature_anew_where_each_has_its_own(
    resumes: dict[str, Outcome], setting: str
) -> None:
    first, second = (own[f"renumbered: {setting}"] for own in told(resumes["2, groups"], "changed"))
    assert first == second
    assert first["remade"] == (setting != "global")
    assert first["steps"] == 2 * STEPS + 1


@pytest.mark.parametrize("setting", NAMED)
def test_step_without_the_group_is_refused_and_changes_nothing(resumes: dict[str, Outcome], setting: str) -> None:
    for own in told(resumes["2, groups"], "changed"):
        gone, before = dict(own[f"gone: {setting}"]), own[f"renumbered: {setting}"]
        assert "needs ranks: expected a process group" in gone.pop("error")
        assert gone == before


def test_auto_goes_on_alone_without_the_group(resumes: dict[str, Outcome]) -> None:
    for own in told(resumes["2, groups"], "changed"):
        assert own["gone: auto"]["error"] == ""
        assert own["gone: auto"]["steps"] == 2 * STEPS + 1 + HALF


def test_group_that_comes_in_mid_run_costs_one_step_for_curvature_of_all(resumes: dict[str, Outcome]) -> None:
    first, second = (own["came"] for own in told(resumes["2, groups"], "changed"))
    assert first == second
    assert (first["skipped"], first["remade"], first["steps"]) == (1, 1, STEPS - 1)


@pytest.mark.parametrize("way", ["closes", "saves", "leaves", "ends"])
def test_rank_without_batches_is_told_of_at_once(resumes: dict[str, Outcome], way: str) -> None:
    outcome = resumes["left"]
    assert outcome.codes == [0, 0, -9], outcome.said
    for result in outcome.results[:2]:
        said = result["left"][way]
        problem = "ranks differ in call" if way == "saves" else "the ranks cannot reach each other"
        assert said.startswith(f"RankError: step(): {problem}"), said
