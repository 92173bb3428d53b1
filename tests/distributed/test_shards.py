"""Models that fully_shard has cut among the ranks, against one process and against replicas."""

from __future__ import annotations

import pytest
from torch import distributed as dist

from .harness import Outcome

EQUAL = 1e-9  # float64 directions of four steps; sums over ranks in another order reach 1e-14
ROUNDED = 3 * 2.0**-8  # bfloat16 keeps 8 bits; inputs, output gradients and gradients are rounded once each
SETTINGS = ("capped", "power 1, every step", "absolute, natural")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", ["global", "sharded"])
def test_cut_model_equals_one_process(cuts: dict[str, Outcome], strategy: str, setting: str) -> None:
    for result in cuts["2"].good():
        assert result["cut_exact"][f"{strategy}: {setting}"] <= EQUAL


@pytest.mark.parametrize("case", ["accumulated", "root alone"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_cut_model_in_micro_batches_or_one_group_equals_one_process(
    cuts: dict[str, Outcome], world: int, case: str
) -> None:
    for result in cuts[str(world)].good():
        assert result["cut_few"][case] <= EQUAL


@pytest.mark.parametrize("setting", ["defaults", "power 1, every step", "moving average", "thin"])
def test_local_directions_of_a_cut_model_are_those_of_replicas(cuts: dict[str, Outcome], setting: str) -> None:
    for result in cuts["2"].good():
        assert result["cut_local"][setting] <= EQUAL


def test_local_directions_of_three_ranks_are_those_of_replicas(cuts: dict[str, Outcome]) -> None:
    assert all(result["cut_few"]["local"] <= EQUAL for result in cuts["3"].good())


def test_bytes_of_a_cut_model_are_those_of_the_plan(cuts: dict[str, Outcome]) -> None:
    for result in cuts["2, more"].good():
        for setting, seen in result["cut_traffic"].items():
            assert seen["measured"] == seen["planned"], setting
            assert seen["measured"][0] >= seen["measured"][1] > 0


@pytest.mark.parametrize("strategy", ["local", "global", "sharded"])
def test_rounding_of_a_cut_model_on_the_wire_is_that_of_bfloat16(cuts: dict[str, Outcome], strategy: str) -> None:
    for result in cuts["2, more"].good():
        assert 0 < result["cut_traffic"][f"{strategy}, rounded"]["error"] <= ROUNDED


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_training_a_cut_model_with_frozen_parameters_equals_one_process(cuts: dict[str, Outcome], base: str) -> None:
    for result in cuts["2, more"].good():
        assert result["cut_training"][base] <= EQUAL


def test_bad_part_of_a_gradient_is_skipped_on_all_ranks(cuts: dict[str, Outcome]) -> None:
    assert [result["cut_training"]["skipped"] for result in cuts["2, more"].good()] == [1, 1]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("tensor parallel", ("ModelError", "0.weight cannot be followed", "Use fully_shard, without tensor")),
        ("two mesh dimensions", ("ModelError", "expected one mesh dimension", "one-dimensional mesh over all ranks")),
        ("some layers", ("ModelError", "some parameters are sharded", "'1.weight'", "without ignored_params")),
        ("none", ("OptionError", "cannot serve a model sharded over 2 ranks", "Leave distributed at 'auto'")),
        ("muon", ("OptionError", "base 'muon' needs whole matrices", "Choose base 'sgd' or 'adamw'")),
        ("verify", ("ModelError", "the model is sharded", "Verify it before fully_shard")),
        ("sharded later", ("OrderError", "other parameters than it had", "Create the optimizer after fully_shard")),
    ],
)
def test_models_sharded_otherwise_are_refused(cuts: dict[str, Outcome], case: str, words: tuple[str, ...]) -> None:
    for result in cuts["2, more"].good():
        assert all(word in result["cut_refused"][case] for word in words)
