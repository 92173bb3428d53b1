"""The paper's recipes train on small archives in the true formats, and go on after a stop as if there was none."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from seng.apps.recipes import build_recipe
from seng.apps.train import build_session, create_run, open_run, train
from seng.apps.train.config import RunConfig
from seng.apps.train.metrics import StepRecord, read_records
from seng.apps.train.settings import override
from seng.errors import SengError

from ..train.data.cifar_files import write_cifar
from ..train.data.image_files import write_imagenet

TIMES = ("seconds", "samples_per_second", "parts", "startup")
OPTIMIZERS = ("seng", "sgd", "adamw")
SMALL = {"epochs": "2", "log_every": "1", "stats_every": "1", "threads": "1", "device": "cpu"}
NARROW = {
    "cifar10-resnet18": {"model.widths": "8,8,16,16", "batch_size": "10"},
    "cifar10-vgg16bn": {"model.widths": "8,8,16,16,16", "batch_size": "10"},
    "imagenet-resnet50": {"model.widths": "16,16,32,32", "batch_size": "4", "data.size": "48"},
}
WHOLE = {
    "cifar10-resnet18": {"batch_size": "10"},
    "cifar10-vgg16bn": {"batch_size": "10"},
    "imagenet-resnet50": {"batch_size": "6", "data.size": "64"},
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_cifar(folder, "binary", archived=True)
    write_imagenet(folder / "imagenet")
    return folder


def _config(recipe: str, optimizer: str, data: Path, changes: dict[str, str]) -> RunConfig:
    workers = {"data.workers": "1" if optimizer == "seng" else "0"}
    return override(build_recipe(recipe, optimizer), {**SMALL, **workers, "data_dir": str(data), **changes})


def _records(path: Path) -> list[dict[str, Any]]:
    """Everything that was measured but times and the beginnings of processes."""
    records = (asdict(record) for record in read_records(path / "metrics.jsonl") if record.kind != "start")
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def _require_resumed_equals_whole(config: RunConfig, path: Path) -> None:
    train(build_session(config), create_run(path / "whole", config))
    train(build_session(config), create_run(path / "parts", config), stop_after=1)
    folder, found = open_run(path / "parts")
    assert found == config
    train(build_session(found), folder, resume=True)
    records = _records(path / "whole")
    kinds = [record["kind"] for record in records]
    assert (kinds.count("epoch"), kinds.count("end")) == (2, 1)
    assert ("curvature" in kinds) == (config.optimizer.name == "seng")
    assert _records(path / "parts") == records


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", NARROW)
def test_paper_recipe_resumes_bit_for_bit(archives: Path, tmp_path: Path, recipe: str, optimizer: str):
    _require_resumed_equals_whole(_config(recipe, optimizer, archives, NARROW[recipe]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WHOLE)
def test_paper_recipe_of_full_width_resumes_bit_for_bit(archives: Path, tmp_path: Path, recipe: str):
    _require_resumed_equals_whole(_config(recipe, "seng", archives, WHOLE[recipe]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resnet50_takes_three_steps_of_eight_pictures_at_224_pixels(archives: Path, tmp_path: Path, optimizer: str):
    write_imagenet(tmp_path / "data", train=8, val=1, size=(320, 240))  # of each of three classes
    config = _config("imagenet-resnet50", optimizer, tmp_path / "data", {"batch_size": "8", "epochs": "1"})
    assert config.data.size == 224
    train(build_session(config), create_run(tmp_path / "run", config))
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [record.step for record in steps] == [1, 2, 3]
    assert steps[0].loss == pytest.approx(6.9, abs=1.0)  # the 1,000 classes start at about even odds, log 1000


def test_paper_recipe_without_its_data_says_where_it_comes_from(tmp_path: Path):
    for recipe, where in (("cifar10-resnet18", "cs.toronto.edu"), ("imagenet-resnet50", "image-net.org")):
        with pytest.raises(SengError, match=f"not here.*{where}"):
            build_session(_config(recipe, "seng", tmp_path, {}))
