"""``seng recipes``, as a person and as a script calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from seng.apps import science
from seng.apps.recipes import RECIPES, build_recipe, summary
from seng.apps.science import PROBLEMS
from seng.apps.train.config import OptimizerName


def test_recipes_lists_each_with_its_data(call, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SENG_DATA", str(tmp_path))
    code, printed = call("recipes")
    assert code == 0
    assert "digits  (data: comes with scikit-learn)" in printed
    assert "fashion-resnet  (data: absent: apt-get install dataset-fashion-mnist)" in printed
    assert "    small-cnn, 20 epochs of batches of 64; seng, sgd, adamw" in printed


def test_recipes_lists_all_for_scripts(call, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SENG_DATA", str(tmp_path))
    code, printed = call("recipes", "--json")
    assert code == 0
    listed = [recipe for recipe in json.loads(printed) if recipe["command"] == "train"]
    assert [recipe["name"] for recipe in listed] == list(RECIPES)
    assert listed[0]["data"] == {"name": "digits", "status": "comes with scikit-learn"}
    for recipe in listed:
        assert recipe["summary"] == summary(recipe["name"])
        for optimizer in recipe["optimizers"]:
            config = build_recipe(recipe["name"], optimizer)
            assert config.optimizer.name == optimizer
        config = build_recipe(recipe["name"])
        assert (recipe["model"], recipe["epochs"]) == (config.model.name, config.epochs)
        assert recipe["batch_size"] == config.batch_size


def test_recipes_lists_scientific_problems(call):
    listed = [recipe for recipe in json.loads(call("recipes", "--json")[1]) if recipe["command"] == "science"]
    assert [problem["name"] for problem in listed] == list(PROBLEMS)
    assert listed[0]["model"] == "tanh network 2-48-48-1"
    assert listed[0]["methods"] == ["natural", "adam", "soap", "lbfgs"]
    printed = call("recipes")[1]
    assert all(f"{name}  (seng science)" in printed and science.summary(name) in printed for name in PROBLEMS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_three_optimizers(call, name: str):
    listed = {recipe["name"]: recipe for recipe in json.loads(call("recipes", "--json")[1])}
    assert listed[name]["optimizers"] == list(get_args(OptimizerName))
