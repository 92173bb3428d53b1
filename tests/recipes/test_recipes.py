"""Every recipe is complete, and reaches what its description promises (slow)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from seng.apps.recipes import RECIPES, build_recipe, summary
from seng.apps.train import build_session, create_run, train
from seng.apps.train.config import DataConfig, RunConfig
from seng.apps.train.data import DATASETS, signature
from seng.apps.train.data.fashion import find_fashion
from seng.apps.train.data.topics import fingerprint
from seng.apps.train.losses import build_loss
from seng.apps.train.models import build_model
from seng.apps.train.records import environment
from seng.apps.train.settings import override
from seng.errors import OptionError


@pytest.mark.parametrize("optimizer", ["seng", "sgd", "adamw"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_names_things_that_exist(name: str, optimizer: str):
    config = build_recipe(name, optimizer)
    assert (config.recipe, config.optimizer.name) == (name, optimizer)
    assert config.data.name in DATASETS
    build_model(config.model, signature(config.data))
    build_loss(config.loss)
    assert summary(name).endswith(".")


def test_unknown_recipe_lists_the_known():
    with pytest.raises(OptionError, match="unknown recipe.*'fashion-resnet'.*Did you mean 'digits'"):
        build_recipe("digit")


def test_char_gpt_records_its_text_beside_its_numbers():
    session = build_session(override(build_recipe("char-gpt"), {"threads": "1"}))
    assert fingerprint()[:12] in str(environment(session)["data"])


def _accuracy(config: RunConfig, path: Path) -> float:
    accuracy = train(build_session(config), create_run(path, config)).accuracy
    assert accuracy is not None
    return accuracy


@pytest.mark.parametrize("seed", range(5))
def test_digits_reaches_97_percent_with_any_seed(tmp_path: Path, seed: int):
    config = build_recipe("digits")
    assert config.epochs <= 20
    assert _accuracy(replace(config, seed=seed), tmp_path) >= 0.97


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(find_fashion(DataConfig("fashion-mnist")) is None, reason="Fashion-MNIST is not on this machine")
def test_fashion_resnet_reaches_88_percent_in_three_epochs(tmp_path: Path):
    config = build_recipe("fashion-resnet")
    assert config.epochs == 3
    assert _accuracy(config, tmp_path) >= 0.88
