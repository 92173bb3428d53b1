"""A run's folder and its files: nothing is overwritten unasked, nothing is half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from seng.apps.train import create_run, open_run
from seng.apps.train.config import RunConfig
from seng.apps.train.errors import CheckpointError
from seng.apps.train.metrics import EpochRecord, MetricsFile, StepRecord, read_records
from seng.files import write_atomically

STEPS = [StepRecord(1, step, 0.1 * step, 0.5, 0.1, 1.0, 2.0) for step in (1, 2, 3)]


def test_open_run_returns_what_create_run_wrote(tmp_path: Path, small_run: RunConfig):
    folder = create_run(tmp_path / "deep" / "run", small_run)
    assert open_run(tmp_path / "deep" / "run") == (folder, small_run)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints/step-00000003.pt"])
def test_create_run_keeps_a_run_that_is_there(tmp_path: Path, small_run: RunConfig, name: str):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="already holds a run.*--resume.*--overwrite"):
        create_run(tmp_path, small_run)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / name).read_text() == "precious"


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path, small_run: RunConfig):
    run = ["metrics.jsonl", "curves.png", "checkpoints/step-00000003.pt", "checkpoints/step-00000003.rank1.pt"]
    others = ["notes.txt", "checkpoints/best.pt"]
    (tmp_path / "checkpoints").mkdir()
    for name in (*run, "tensorboard/events.out.tfevents.1.host", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    create_run(tmp_path, small_run, overwrite=True)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(["config.json", *others])


def test_create_run_says_why_a_folder_cannot_be_made(tmp_path: Path, small_run: RunConfig):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written.*Choose another --out"):
        create_run(tmp_path / "file" / "run", small_run)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no run to resume: expected .*config.json"),
        ("{", "config.json cannot be read"),
        ('{"epochs": 3}', "config.json cannot be read.*not a RunConfig"),
    ],
)
def test_open_run_refuses_what_is_no_run(tmp_path: Path, content: str | None, match: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=match):
        open_run(tmp_path)


def test_write_atomically_leaves_the_old_file_when_writing_fails(tmp_path: Path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file) -> None:
        file.write(b"half of the n")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_metrics_come_back_exactly(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    last = EpochRecord(1, 3, 1 / 3, 0.5, 2 / 3, 0.25, 1e-9, 3.0)
    for record in (*STEPS, last):
        file.logged(record)
    assert read_records(tmp_path / "metrics.jsonl") == [*STEPS, last]


def test_metrics_refuse_numbers_that_json_does_not_have(tmp_path: Path):
    record = StepRecord(1, 1, float("nan"), 0.5, 0.1, 1.0, 2.0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        MetricsFile(tmp_path / "metrics.jsonl").logged(record)


def test_metrics_file_keeps_what_it_is_told_to_and_cuts_the_rest(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for record in STEPS[:2]:
        file.logged(record)
    kept = file.sync()
    assert kept == path.stat().st_size
    file.logged(STEPS[2])
    with path.open("a") as half:
        half.write('{"kind": "step", "st')
    again = MetricsFile(path, keep=kept)
    assert read_records(path) == STEPS[:2]
    again.logged(STEPS[2])
    assert read_records(path) == STEPS


def test_metrics_file_that_lost_records_is_not_filled_with_zeros(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    MetricsFile(path, keep=1000)
    assert path.read_text() == "{}\n"


def test_read_records_passes_over_a_last_line_that_is_not_whole(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).logged(STEPS[0])
    with path.open("a") as half:
        half.write('{"kind": "step", "st')
    assert read_records(path) == STEPS[:1]
