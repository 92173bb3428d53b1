"""The training loop: what it writes, that it learns, and that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from seng.apps.recipes import build_recipe
from seng.apps.train import Evaluation, build_session, create_run, open_run, train
from seng.apps.train.checkpoint import checkpoints
from seng.apps.train.config import RunConfig
from seng.apps.train.errors import DivergedError
from seng.apps.train.folder import RunFolder
from seng.apps.train.metrics import read_records
from seng.apps.train.settings import override

from .conftest import SMALL

TIMES = ("seconds", "samples_per_second", "parts")


def _start(config: RunConfig, path: Path, **options: Any) -> Evaluation:
    return train(build_session(config), create_run(path, config), **options)


def _resume(path: Path, **options: Any) -> Evaluation:
    folder, config = open_run(path)
    return train(build_session(config), folder, resume=True, **options)


def _records(path: Path) -> list[dict[str, Any]]:
    """The run's records without times, and without the starts of processes, which are times."""
    records = [asdict(record) for record in read_records(RunFolder(path).metrics) if record.kind != "start"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def test_train_records_every_logged_step_and_every_epoch(tmp_path: Path, small_run: RunConfig):
    result = _start(small_run, tmp_path)
    records = _records(tmp_path)
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(3, 45, 3))
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, 11), (2, 22), (3, 33), (4, 44)]
    last = (epochs[-1]["test_loss"], epochs[-1]["test_accuracy"], epochs[-1]["test_accuracy5"])
    assert last == (result.loss, result.accuracy, result.accuracy5)
    assert records[-1] == {"kind": "end", "epoch": 4, "step": 44, "reason": "epochs"}
    seconds = [record.seconds for record in read_records(RunFolder(tmp_path).metrics)]
    assert seconds == sorted(seconds)


def test_first_step_is_recorded_with_what_it_ran_on(tmp_path: Path, small_run: RunConfig):
    _start(small_run, tmp_path, stop_after=1)
    first, *rest = map(asdict, read_records(RunFolder(tmp_path).metrics))
    assert (first["kind"], first["step"]) == ("start", 1)
    assert 0 < first["seconds"] < first["startup"]
    assert first["environment"]["torch"] == torch.__version__
    assert first["environment"]["processes"] == 1
    assert "start" not in {record["kind"] for record in rest}


def test_parts_of_a_step_add_up_to_its_time(tmp_path: Path, small_run: RunConfig):
    _start(dataclasses.replace(small_run, log_every=11), tmp_path, stop_after=2)
    first, second = (r for r in map(asdict, read_records(RunFolder(tmp_path).metrics)) if r["kind"] == "step")
    assert set(second["parts"]) == {"data", "forward", "backward", "optimizer", "refresh"}
    refresh = second["parts"].pop("refresh")
    assert 0 < refresh < second["parts"]["optimizer"]
    spent = sum(second["parts"].values()) * 11
    assert 0.5 < spent / (second["seconds"] - first["seconds"]) <= 1  # the rest is sums and records


def test_curvature_is_recorded_as_often_as_asked_with_spectra_once_an_epoch(tmp_path: Path, small_run: RunConfig):
    _start(dataclasses.replace(small_run, stats_every=4), tmp_path, stop_after=2)
    records = [record for record in _records(tmp_path) if record["kind"] == "curvature"]
    assert [record["step"] for record in records] == [4, 8, 11, 12, 16, 20, 22]
    assert [bool(record["spectra"]) for record in records] == [False, False, True, False, False, False, True]
    for record in records:
        assert set(record["layers"]) == {"0", "2", "6"}
    sizes = {name: len(spectrum) for name, spectrum in records[-1]["spectra"].items()}
    assert sizes == {"0": 40, "2": 64, "6": 64}  # block 0 has 40 parameters
    for name, layer in records[-1]["layers"].items():
        spectrum = records[-1]["spectra"][name]
        assert spectrum == sorted(spectrum, reverse=True)
        assert spectrum[0] == layer["top_eigenvalues"][0]
        assert layer["refresh_age"] == 21 - 20


@pytest.mark.parametrize(("optimizer", "every"), [("sgd", 4), ("seng", 0)])
def test_curvature_is_not_recorded_where_there_is_none_or_none_is_wanted(tmp_path: Path, optimizer: str, every: int):
    config = override(build_recipe("digits", optimizer), SMALL | {"stats_every": str(every)})
    _start(config, tmp_path, stop_after=1)
    assert "curvature" not in {record["kind"] for record in _records(tmp_path)}


def test_train_learns_the_digits(tmp_path: Path):
    result = _start(override(build_recipe("digits"), {"epochs": "3"}), tmp_path)
    assert (result.accuracy or 0) > 0.85  # chance is 0.1


@pytest.mark.parametrize("optimizer", ["seng", "sgd", "adamw"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path: Path, optimizer: str):
    config = override(build_recipe("digits", optimizer), SMALL)
    whole = _start(config, tmp_path / "whole")
    _start(config, tmp_path / "parts", stop_after=2)
    torch.manual_seed(1234)  # whatever happens between the parts
    parts = _resume(tmp_path / "parts")
    assert parts == whole
    assert _records(tmp_path / "parts") == _records(tmp_path / "whole")
    newest = (checkpoints(RunFolder(tmp_path / name).checkpoints)[0] for name in ("whole", "parts"))
    one, two = (torch.load(file, weights_only=True)["model"] for file in newest)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_run_killed_inside_an_epoch_goes_on_bit_for_bit(tmp_path: Path):
    config = override(build_recipe("digits"), SMALL | {"checkpoint_every": "4", "model.dropout": "0"})
    _start(config, tmp_path / "whole", stop_after=2)
    for killed_at in (7, 15, 16, 22):  # in both epochs, right after a checkpoint, and after the last step
        folder = create_run(tmp_path / str(killed_at), config)
        with pytest.raises(RuntimeError, match="killed"):
            train(build_session(config), folder, watchers=[_Kills(killed_at)])
        torch.manual_seed(1234)
        _resume(folder.path, stop_after=2)
        assert _records(folder.path) == _records(tmp_path / "whole")


class _Kills:
    """Fails when so many steps are done, with no chance for the run to save anything."""

    def __init__(self, steps: int) -> None:
        self.left = steps + 1  # the first call tells where the run starts

    def advanced(self, samples: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("killed")

    def logged(self, record: Any) -> None:
        pass


def test_resume_writes_again_what_came_after_the_checkpoint(tmp_path: Path, small_run: RunConfig):
    _start(small_run, tmp_path, stop_after=2)
    before = _records(tmp_path)
    with RunFolder(tmp_path).metrics.open("a") as file:  # as a run killed in its third epoch leaves it
        file.write('{"kind": "step", "step": 24, "epoch": 3, "loss": 1.0}\n{"kind": "st')
    _resume(tmp_path, stop_after=3)
    records = _records(tmp_path)
    assert records[: len(before)] == before
    assert [r["step"] for r in records[len(before) :]] == [24, 27, 30, 33, 33, 33]
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
    (saved,) = checkpoints(folder.checkpoints)
    content = saved.read_bytes()
    with torch.no_grad():
        next(session.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"diverged by step 3: expected a finite loss, got nan.*--lr"):
        train(session, folder, stop_after=2)
    assert checkpoints(folder.checkpoints) == [saved]
    assert saved.read_bytes() == content
