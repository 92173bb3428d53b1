"""TensorBoard's files hold the records' numbers; a resumed run replaces what it writes again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from seng.apps.train.errors import ConfigError
from seng.apps.train.metrics import CurvatureRecord, EndRecord, EpochRecord, StepRecord
from seng.apps.train.tensorboard import TensorBoardFiles, numbers

SINGLE = 1e-6  # the files hold float32

LAYER = {"trace": 4.0, "effective_dimension": 2.5, "damping": 0.1, "cosine": None, "samples": 8}
CURVATURE = CurvatureRecord(1, 2, 1.0, {"body.0": LAYER})


def _step(step: int, loss: float) -> StepRecord:
    return StepRecord(1, step, loss, None, 0.1, 1.0, 100.0, {"data": 0.5})


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulators.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_numbers_are_named_by_what_they_are_and_absent_ones_left_out():
    assert numbers(_step(3, 0.25)) == {
        "step/loss": 0.25,
        "step/lr": 0.1,
        "speed/samples_per_second": 100.0,
        "time/data": 0.5,
    }
    assert numbers(CURVATURE) == {"trace/body.0": 4.0, "effective_dimension/body.0": 2.5, "damping/body.0": 0.1}
    epoch = EpochRecord(1, 10, 0.5, 0.75, 0.25, 0.875, 1.0, 2.0, test_accuracy5=0.99)
    assert numbers(epoch)["epoch/test_accuracy5"] == 0.99
    assert numbers(EndRecord(1, 10, 1.0, "epochs")) == {}


def test_files_hold_the_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard")
    with TensorBoardFiles(tmp_path) as files:
        for record in (_step(1, 0.5), _step(2, 0.25), CURVATURE):
            files.logged(record)
    scalars = _scalars(tmp_path)
    assert scalars["step/loss"] == [(1, 0.5), (2, 0.25)]
    assert scalars["damping/body.0"] == [(2, pytest.approx(0.1, rel=SINGLE))]


def test_resumed_run_replaces_what_it_writes_again(tmp_path: Path):
    pytest.importorskip("tensorboard")
    for losses in ({1: 4.0, 2: 3.0, 3: 2.0}, {2: 30.0, 3: 20.0, 4: 10.0}):
        with TensorBoardFiles(tmp_path) as files:
            for step, loss in losses.items():
                files.logged(_step(step, loss))
    assert _scalars(tmp_path)["step/loss"] == [(1, 4.0), (2, 30.0), (3, 20.0), (4, 10.0)]


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ConfigError, match=r"TensorBoard is not installed.*pip install 'seng\[tensorboard\]'"):
        TensorBoardFiles(tmp_path)
