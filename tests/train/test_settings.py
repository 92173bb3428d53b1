"""Settings as text and as plain values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from seng.apps.recipes import RECIPES, build_recipe
from seng.apps.train.config import RunConfig
from seng.apps.train.errors import ConfigError
from seng.apps.train.settings import from_dict, override, settings, to_dict

CONFIG = build_recipe("digits")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "7", 7),
        ("optimizer.lr", "1e-3", 0.001),
        ("lr", "2", 2.0),
        ("trust", "none", None),
        ("trust", "0.5", 0.5),
        ("model.widths", "8,16,32", (8, 16, 32)),
        ("data_dir", "some/folder", "some/folder"),
        ("schedule.name", "constant", "constant"),
        ("optimizer.seng.power", "1", 1.0),
    ],
)
def test_override_changes_one_setting_and_no_other(name, text, value):
    before, after = settings(CONFIG), settings(override(CONFIG, {name: text}))
    changed = {path for path in before if before[path] != after[path]}
    (path,) = [path for path in before if path == name or path.endswith(f".{name}")]
    assert changed == ({path} if before[path] != value else set())
    assert after[path] == value
    assert type(after[path]) is type(value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epocs": "3"}, "unknown setting.*Did you mean 'epochs'"),
        ({"zzzzzzzz": "3"}, "unknown setting.*Choose one of the names"),
        ({"power": "1"}, "ambiguous: expected optimizer.seng.power or schedule.power"),
        ({"seed": str(2**63)}, "bad value for seed: expected a whole number, got '9223372036854775808'"),
        ({"model.widths": f"8,{10**30}"}, "bad value for model.widths"),
        ({"epochs": "many"}, "bad value for epochs: expected a whole number, got 'many'"),
        ({"trust": "much"}, "expected none or a number or auto, got 'much'"),
        ({"schedule.name": "sine"}, "expected polynomial or cosine or constant, got 'sine'"),
        ({"widths": "8;16"}, "expected whole numbers with commas between"),
        ({"epochs": "0"}, "epochs is out of range: expected 1 or more, got 0"),
        ({"batch_size": "-1"}, "batch_size is out of range"),
        ({"threads": "-1"}, "threads is out of range: expected 0 or more"),
        ({"optimizer.name": "sgd"}, "optimizer and its settings do not match.*Choose .* with --optimizer"),
        ({"seng": "none"}, "unknown setting"),
    ],
)
def test_override_refuses(changes, match):
    with pytest.raises(ConfigError, match=match):
        override(CONFIG, changes)


def test_override_names_no_seng_options_for_sgd():
    with pytest.raises(ConfigError, match="unknown setting for digits with sgd"):
        override(build_recipe("digits", "sgd"), {"damping": "0.3"})


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("optimizer", ["seng", "sgd", "adamw"])
def test_config_survives_json(recipe, optimizer):
    config = build_recipe(recipe, optimizer)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epochs": "3"}, "bad value for epochs: expected a whole number, got '3'"),
        ({"extra": 1}, "not a RunConfig"),
        ({"model": {"name": "small-cnn"}}, "not a ModelConfig"),
        ({"model": 3}, "bad value for model"),
    ],
)
def test_from_dict_refuses_what_is_no_config(change, match):
    with pytest.raises(ConfigError, match=match):
        from_dict(to_dict(CONFIG) | change)


def test_from_dict_refuses_a_list():
    with pytest.raises(ConfigError, match="not a RunConfig"):
        from_dict([1, 2])  # type: ignore[arg-type]


def test_equal_configs_are_equal_and_frozen():
    assert replace(CONFIG) == CONFIG
    assert isinstance(CONFIG, RunConfig)
    with pytest.raises(AttributeError, match="cannot assign"):
        CONFIG.epochs = 3  # type: ignore[misc]
