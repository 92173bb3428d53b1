"""Checkpoints through torch.distributed.checkpoint, on as many ranks as they were saved by and on others."""

from __future__ import annotations

import pytest
from torch import distributed as dist

from .harness import Outcome

EQUAL = 1e-9  # float64 parameters after four steps; sums over ranks in another order reach 1e-15
POOLED = ("global", "sharded", "cut")
PATHS = ((1, 2), (2, 1), (2, 2), (2, 3))  # from so many ranks to so many
CROSSINGS = (("2-cut", "sharded"), ("2-sharded", "cut"), ("2-global", "sharded"))
HALF, REFRESHED = 2, 3  # steps before a checkpoint; the last step at which a refresh was due

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.mark.parametrize("setting", POOLED)
@pytest.mark.parametrize(("source", "world"), PATHS)
def test_moved_run_ends_where_one_process_does(
    moves: dict[str, Outcome], source: int, world: int, setting: str
) -> None:
    for result in moves[f"loaded by {world}"].good():
        seen = result["loading"][f"{source} {setting}"]
        assert seen["error"] <= EQUAL
        assert (seen["steps"], seen["refreshed"]) == (HALF, REFRESHED)  # held until its turn, not made anew


@pytest.mark.parametrize(("source", "world"), PATHS)
def test_ranks_take_up_curvature_of_single_ranks(moves: dict[str, Outcome], source: int, world: int) -> None:
    saved = [result["saving"]["local"]["held"] for result in moves[f"saved by {source}"].good()]
    for rank, result in enumerate(moves[f"loaded by {world}"].good()):
        seen = result["loading"][f"{source} local"]
        assert seen["held"] == saved[rank % source]
        assert seen["refreshed"] == REFRESHED


@pytest.mark.parametrize("setting", ["local", *POOLED])
def test_as_many_ranks_continue_bit_for_bit(moves: dict[str, Outcome], setting: str) -> None:
    pairs = zip(moves["saved by 2"].good(), moves["loaded by 2"].good(), strict=True)
    for before, after in pairs:
        assert after["loading"][f"2 {setting}"]["held"] == before["saving"][setting]["held"]
        assert after["loading"][f"2 {setting}"]["end"] == before["saving"][setting]["end"]


def test_extra_values_come_back(moves: dict[str, Outcome]) -> None:
    for result in moves["loaded by 3"].good():
        assert result["loading"]["2 sharded"]["extra"] == {"step": HALF, "rates": [0.1, None]}


@pytest.mark.parametrize(("source", "setting"), CROSSINGS)
def test_state_moves_between_whole_and_cut_models_and_strategies(
    moves: dict[str, Outcome], source: str, setting: str
) -> None:
    for result in moves["loaded by 2"].good():
        error, refreshed = result["crossing"][f"{source} to {setting}"]
        assert error <= EQUAL
        assert refreshed == REFRESHED


def test_pooled_curvature_does_not_go_to_local_ranks(moves: dict[str, Outcome]) -> None:
    for result in moves["loaded by 2"].good():
        assert result["crossing"]["2-sharded to local"][1] == HALF  # made anew at once


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", ("a part of 2-sharded is missing", "all but __1_0.distcp", "with all its files")),
        ("none", ("no checkpoint in nowhere", "a folder that was written whole")),
        ("model", ("StateError: load_state_dict(): a state of another model",)),
        ("base", ("the base has other groups of parameters",)),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused(moves: dict[str, Outcome], case: str, words: tuple[str, ...]) -> None:
    for result in moves["loaded by 2"].good():
        assert result["damaged"][case].startswith("StateError: ")
        assert all(word in result["damaged"][case] for word in words)
