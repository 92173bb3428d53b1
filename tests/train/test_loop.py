"""The training loop: what it writes, that it learns, and that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from seng.recipes import build_recipe
from seng.train import build_session, create_run, evaluate, open_run, train
from seng.train.config import RunConfig
from seng.train.data import TensorSplit
from seng.train.errors import DivergedError
from seng.train.folder import RunFolder
from seng.train.loop import Evaluation
from seng.train.metrics import read_metrics
from seng.train.settings import override

from .conftest import SMALL

TIMES = ("seconds", "samples_per_second")


def _start(config: RunConfig, path: Path, **options: Any) -> Evaluation:
    return train(build_session(config), create_run(path, config), **options)


def _resume(path: Path, **options: Any) -> Evaluation:
    folder, config = open_run(path)
    return train(build_session(config), folder, resume=True, **options)


def _records(path: Path) -> list[dict[str, Any]]:
    records = list(read_metrics(RunFolder(path).metrics))
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def test_train_records_every_logged_step_and_every_epoch(tmp_path: Path, small_run: RunConfig):
    result = _start(small_run, tmp_path)
    records = _records(tmp_path)
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(3, 45, 3))
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, 11), (2, 22), (3, 33), (4, 44)]
    assert (epochs[-1]["test_loss"], epochs[-1]["test_accuracy"]) == (result.loss, result.accuracy)
    seconds = [record["seconds"] for record in read_metrics(RunFolder(tmp_path).metrics)]
    assert seconds == sorted(seconds)


def test_train_learns_the_digits(tmp_path: Path):
    result = _start(override(build_recipe("digits"), {"epochs": "3"}), tmp_path)
    assert result.accuracy > 0.85  # chance is 0.1


@pytest.mark.parametrize("optimizer", ["seng", "sgd", "adamw"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path: Path, optimizer: str):
    config = override(build_recipe("digits", optimizer), SMALL)
    whole = _start(config, tmp_path / "whole")
    _start(config, tmp_path / "parts", stop_after=2)
    torch.manual_seed(1234)  # whatever happens between the parts
    parts = _resume(tmp_path / "parts")
    assert parts == whole
    assert _records(tmp_path / "parts") == _records(tmp_path / "whole")
    files = (RunFolder(tmp_path / name).checkpoint for name in ("whole", "parts"))
    one, two = (torch.load(file, weights_only=True)["model"] for file in files)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resume_writes_again_what_came_after_the_checkpoint(tmp_path: Path, small_run: RunConfig):
    _start(small_run, tmp_path, stop_after=2)
    before = _records(tmp_path)
    with RunFolder(tmp_path).metrics.open("a") as file:  # as a run killed in its third epoch leaves it
        file.write('{"kind": "step", "step": 24, "epoch": 3, "loss": 1.0}\n{"kind": "st')
    _resume(tmp_path, stop_after=3)
    records = _records(tmp_path)
    assert records[: len(before)] == before
    assert [r["step"] for r in records[len(before) :]] == [24, 27, 30, 33, 33]
    assert records[len(before)]["loss"] != 1.0


def test_resume_before_the_first_checkpoint_starts_from_the_beginning(tmp_path: Path, small_run: RunConfig):
    _start(small_run, tmp_path / "whole", stop_after=1)
    create_run(tmp_path / "killed", small_run)
    _resume(tmp_path / "killed", stop_after=1)
    assert _records(tmp_path / "killed") == _records(tmp_path / "whole")


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path, small_run: RunConfig):
    result = _start(small_run, tmp_path)
    before = RunFolder(tmp_path).metrics.read_bytes()
    assert _resume(tmp_path) == result
    assert RunFolder(tmp_path).metrics.read_bytes() == before


def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path: Path, small_run: RunConfig):
    results = [
        _start(dataclasses.replace(small_run, seed=seed), tmp_path / str(run), stop_after=1)
        for run, seed in enumerate((0, 0, 1))
    ]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_diverged_run_stops_and_keeps_its_checkpoint(tmp_path: Path, small_run: RunConfig):
    config = override(override(build_recipe("digits", "sgd"), SMALL), {"lr": "1e-3"})
    folder, session = create_run(tmp_path, config), build_session(config)
    train(session, folder, stop_after=1)
    saved = folder.checkpoint.read_bytes()
    with torch.no_grad():
        next(session.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"diverged by step 3: expected a finite loss, got nan.*--lr"):
        train(session, folder, stop_after=2)
    assert folder.checkpoint.read_bytes() == saved


class _Remembers(nn.Module):
    """Answers with a fixed class, and notes the modes in which it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        return nn.functional.one_hot(torch.ones(len(inputs), dtype=torch.long), 3).float()


def test_evaluate_is_exact_over_ragged_batches_and_restores_the_mode():
    targets = torch.tensor([1, 0] * 700 + [1])
    split = TensorSplit(torch.zeros(1401, 2), targets)
    model = _Remembers()
    result = evaluate(model, split, nn.functional.cross_entropy, torch.device("cpu"))
    assert result.accuracy == 701 / 1401
    every = nn.functional.cross_entropy(model(split.inputs), targets)
    assert result.loss == pytest.approx(every.item(), rel=1e-6)  # float32 means of two batches
    assert model.modes == [False, False, True]
