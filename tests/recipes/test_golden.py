"""The recipes' first 20 steps stay as they were; `python tests/recipes/traces.py` writes the traces anew."""

from __future__ import annotations

import json

import pytest

from seng.apps.recipes import RECIPES, build_recipe
from seng.apps.train.data import data_status
from seng.apps.train.data.topics import fingerprint

from .traces import OPTIMIZERS, SMALLER, STEPS, golden_file, trace, trace_config

# float64: other orders of sums move these losses by 3e-14 within 20 steps, changes of 1e-10 in the weights by 4e-8
ROUNDING = 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", SMALLER)
def test_recipe_repeats_its_golden_trace(recipe: str, optimizer: str):
    config = trace_config(recipe, optimizer)
    golden = json.loads(golden_file(recipe, optimizer).read_text())
    if (status := data_status(config.data)).startswith("absent"):
        pytest.skip(status)
    if golden.get("text", fingerprint()) != fingerprint():
        pytest.skip(f"the trace is of the text of Python {golden['python']}")
    changed = "if the recipe's settings were changed on purpose: python tests/recipes/traces.py"
    assert trace(config) == pytest.approx(golden["losses"], rel=ROUNDING), changed


def test_golden_traces_tell_optimizers_and_recipes_apart():
    losses = [json.loads(golden_file(r, o).read_text())["losses"] for r in SMALLER for o in OPTIMIZERS]
    assert {len(trace) for trace in losses} == {STEPS}
    assert len({tuple(trace) for trace in losses}) == len(losses)
    assert all(min(trace) < 0.99 * trace[0] for trace in losses)


def test_recipes_without_a_golden_trace_are_those_whose_data_must_be_fetched():
    without = set(RECIPES) - set(SMALLER)
    assert {build_recipe(name).data.name for name in without} <= {"cifar10", "imagenet"}
