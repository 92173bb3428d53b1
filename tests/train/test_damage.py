"""Runs whose files are damaged, and folders that cannot be written: they are named, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seng
from seng.apps.recipes import build_recipe
from seng.apps.report import ReportError, write_report
from seng.apps.train import Evaluation, build_session, create_run, open_run, train
from seng.apps.train.checkpoint import checkpoint_path, checkpoints, restore_newest
from seng.apps.train.config import RunConfig
from seng.apps.train.errors import CheckpointError, DamagedError, DivergedError
from seng.apps.train.folder import RunFolder, locked
from seng.apps.train.metrics import MetricsFile, StepRecord, read_records
from seng.apps.train.settings import override

from ..cli.conftest import call
from ..report.made import make_records, make_run
from .conftest import SMALL

__all__ = ["call"]  # a fixture

NESTED = b"[" * 100_000
QUICK = ("--epochs", "1", "--set", "model.widths=1,1", "--set", "train_samples=100", "--optimizer", "sgd")


def _start(config: RunConfig, path: Path, **options: Any) -> Evaluation:
    return train(build_session(config), create_run(path, config), **options)


def _resume(path: Path, **options: Any) -> Evaluation:
    folder, config = open_run(path)
    return train(build_session(config), folder, resume=True, **options)


# -- metrics --------------------------------------------------------------------------------------------------------

STEP = b'{"epoch": 1, "step": 3, "loss": 1.0, "accuracy": 0.5, "lr": 0.1, "seconds": 1.0, "samples_per_second": 2.0, '
LINES = {
    "empty": b"",
    "cut": STEP,
    "garbage": bytes(range(128, 256)),
    "zeros": bytes(100),
    "not finite": STEP.replace(b"1.0", b"NaN", 1) + b'"kind": "step"}',
    "infinite": STEP.replace(b"1.0", b"1e999", 1) + b'"kind": "step"}',
    "beyond 64 bits": STEP.replace(b": 3", b": 1" + b"0" * 30) + b'"kind": "step"}',
    "a long number": STEP.replace(b": 3", b": " + b"9" * 9999) + b'"kind": "step"}',
    "without a field": STEP.replace(b'"lr": 0.1, ', b"") + b'"kind": "step"}',
    "with another field": STEP + b'"kind": "step", "x": 1}',
    "text for a number": STEP.replace(b"0.1", b'"0.1"') + b'"kind": "step"}',
    "true for a number": STEP.replace(b"3", b"true") + b'"kind": "step"}',
    "null for a number": STEP.replace(b"0.1", b"null") + b'"kind": "step"}',
    "parts of text": STEP + b'"parts": {"data": "x"}, "kind": "step"}',
    "no kind": STEP + b'"x": 1}',
    "an unknown kind": STEP + b'"kind": "leap"}',
    "a list for a kind": STEP + b'"kind": ["step"]}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "nested": NESTED + b"]" * len(NESTED),
    "nested without end": NESTED,
    "long": b'{"kind": "' + b"x" * 10**6 + b'"}',
    "a layer without numbers": b'{"epoch": 1, "step": 1, "seconds": 1.0, "layers": {"a": {}}, "kind": "curvature"}',
    "spectra of no layer": b'{"epoch": 1, "step": 1, "seconds": 1.0, "layers": {}, "spectra": {"a": [1.0]},'
    b' "kind": "curvature"}',
    "layers of text": b'{"epoch": 1, "step": 1, "seconds": 1.0, "layers": "x", "kind": "curvature"}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_report_names_the_line_that_is_no_record(tmp_path: Path, line: bytes):
    metrics = RunFolder(make_run(tmp_path / "run", epochs=1)).metrics
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    with pytest.raises(ReportError, match=r"metrics.jsonl is damaged: .*got .line 4: .{,300}$"):
        write_report([metrics.parent], tmp_path / "page.html")
    reasons: list[str] = []
    assert len(read_records(metrics, reasons.append)) == len(lines)
    assert [reason[:7] for reason in reasons] == ["line 4:"]


def test_finished_run_says_which_lines_it_passes_over(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The lines were there before the run went on; the run itself ends as it should."""
    assert call("train", "--out", tmp_path, *QUICK)[0] == 0
    metrics = RunFolder(tmp_path).metrics
    metrics.write_bytes(b"".join(line + b"\n" for line in LINES.values()) + metrics.read_bytes())
    monkeypatch.setattr(
        "seng.apps.train.loop.MetricsFile", lambda path, keep: MetricsFile(path, metrics.stat().st_size)
    )
    code, printed = call("train", "--out", tmp_path, "--resume")
    assert code == 0
    for number in range(1, len(LINES) + 1):
        assert f"metrics.jsonl: passed over, it is damaged: line {number}: " in printed
    assert "test accuracy" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("content", [None, b"", b"\xef\xbb\xbf", b"\n\n", b"\0" * 10**6])
def test_finished_run_needs_no_metrics(call, tmp_path: Path, content: bytes | None):
    assert call("train", "--out", tmp_path, *QUICK)[0] == 0
    metrics = RunFolder(tmp_path).metrics
    metrics.unlink()
    if content is not None:
        metrics.write_bytes(content)
    code, printed = call("train", "--out", tmp_path, "--resume", "--json")
    assert code == 0
    assert "test accuracy" in printed
    assert json.loads(printed[: printed.index("}") + 1])["epoch"] is None


def test_metrics_that_are_no_file_are_named_before_training(tmp_path: Path, small_run: RunConfig):
    folder = create_run(tmp_path / "run", small_run)
    folder.metrics.mkdir()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl cannot be written: .*Is a directory"):
        train(build_session(small_run), folder)
    with pytest.raises(ReportError, match="metrics.jsonl is damaged: .*is no file"):
        write_report([folder.path], tmp_path / "page.html")
    with pytest.raises(CheckpointError, match="the folder cannot be written: .*directory"):
        create_run(tmp_path / "run", small_run, overwrite=True)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_read_records_of_drawn_damage_reads_or_names_a_line(data: st.DataObject):
    records = make_records("seng", 1)
    lines = [json.dumps(dataclasses.asdict(record)).encode() for record in records[:6]]
    place = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[place])
    for _ in range(data.draw(st.integers(1, 3))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    lines[place] = bytes(line)
    with TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(b"\n".join([*lines, b""]))
        reasons: list[str] = []
        found = read_records(path, reasons.append)
        for record in found:
            json.dumps(dataclasses.asdict(record), allow_nan=False)
        assert all(reason.startswith("line ") and len(reason) < 300 for reason in reasons)
        if reasons:
            with pytest.raises(ValueError, match=r"^line \d"):
                read_records(path)


def test_record_after_a_cut_line_begins_a_line_of_its_own(tmp_path: Path):
    path, record = tmp_path / "metrics.jsonl", StepRecord(1, 1, 0.5, 0.5, 0.1, 1.0, 2.0)
    MetricsFile(path).logged(record)
    with path.open("ab") as file:
        file.write(b'{"kind": "st')
    MetricsFile(path, keep=10**6).logged(record)
    assert read_records(path) == [record, record]


def test_record_that_is_not_finite_ends_the_run_with_a_word(tmp_path: Path):
    record = StepRecord(1, 7, float("inf"), 0.5, 0.1, 1.0, 2.0)
    with pytest.raises(DivergedError, match="the record of step 7 is not finite"):
        MetricsFile(tmp_path / "metrics.jsonl").logged(record)


# -- divergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["parameter", "momentum"])
def test_state_that_is_not_finite_takes_the_place_of_no_checkpoint(tmp_path: Path, place: str):
    changes = SMALL | {"checkpoint_every": "1", "keep": "2", "log_every": "100"}
    config = override(build_recipe("digits", "sgd"), changes)
    session = build_session(config)

    class Spoils:
        steps = -1

        def advanced(self, samples: int) -> None:
            self.steps += 1
            if self.steps == 5:
                parameter = next(session.model.parameters())
                momentum = session.optimizer.state[parameter]["momentum_buffer"]
                (parameter.data if place == "parameter" else momentum).view(-1)[0] = torch.nan

        def logged(self, record: Any) -> None: ...

    folder = create_run(tmp_path, config)
    with pytest.raises(DivergedError, match="the state is not finite after step 5: .*the last checkpoint is kept"):
        train(session, folder, watchers=[Spoils()])
    assert [path.name for path in checkpoints(folder.checkpoints)] == ["step-00000004.pt", "step-00000003.pt"]
    assert _resume(tmp_path, stop_after=1).loss < 10


def test_checkpoint_that_is_not_finite_gives_way_to_the_one_before(tmp_path: Path, small_run: RunConfig):
    _start(small_run, tmp_path, stop_after=2)
    newest, before = checkpoints(tmp_path / "checkpoints")
    state = torch.load(newest, weights_only=True)
    next(iter(state["model"].values())).view(-1)[0] = torch.nan
    torch.save(state, newest)
    with pytest.warns(UserWarning, match=f"{newest.name} is unreadable.*not finite.*Going on from {before.name}"):
        position = restore_newest(tmp_path / "checkpoints", build_session(small_run))
    assert position is not None
    assert position.step == 11


# -- disks and folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, small_run: RunConfig, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    _start(small_run, tmp_path, stop_after=1)

    def full(handle: int) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr("seng.files.os.fsync", full)
        with pytest.raises(CheckpointError, match=f"cannot be written: .*{error.strerror}.*is kept"):
            _resume(tmp_path, stop_after=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000011.pt"]
    _resume(tmp_path, stop_after=2)


def test_folder_in_the_place_of_a_checkpoint_is_named(tmp_path: Path, small_run: RunConfig):
    _start(small_run, tmp_path, stop_after=1)
    (tmp_path / "checkpoints" / "step-00000022.pt").mkdir()
    with (
        pytest.warns(UserWarning, match="step-00000022.pt is unreadable: .*Going on from step-00000011.pt"),
        pytest.raises(CheckpointError, match=r"the checkpoint cannot be written: .*step-00000022.pt"),
    ):
        _resume(tmp_path)
    (tmp_path / "checkpoints" / "step-00000022.pt").rmdir()
    (tmp_path / "checkpoints" / "step-00000000.pt").mkdir()  # in nobody's way
    _resume(tmp_path)


def test_file_in_the_place_of_the_checkpoints_is_named(tmp_path: Path, small_run: RunConfig):
    folder = create_run(tmp_path, small_run)
    folder.checkpoints.write_text("")
    with pytest.raises(CheckpointError, match="the checkpoint cannot be written: .*File exists"):
        train(build_session(small_run), folder)


@pytest.mark.parametrize("command", ["train digits", "science poisson-2d", "theory ntk --quick", "report"])
def test_folders_that_cannot_be_made_are_told_in_one_line(call, tmp_path: Path, command: str):
    (tmp_path / "file").write_text("")
    words = command.split()
    run = [make_run(tmp_path / "run", epochs=1)] if command == "report" else []
    code, printed = call(*words, *run, "--out", tmp_path / "file" / "below")
    assert code == 2
    assert "error: seng" in printed
    assert "Not a directory" in printed or "File exists" in printed
    assert "Traceback" not in printed


DAMAGED_SETTINGS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda plain: NESTED.decode(), "cannot be read"),
    (lambda plain: "", "cannot be read"),
    (lambda plain: "\0" * 100, "cannot be read"),
    (lambda plain: plain | {"epochs": True}, "bad value for epochs"),
    (lambda plain: plain | {"epochs": "3"}, "bad value for epochs"),
    (lambda plain: plain | {"model": plain["model"] | {"widths": ["a"]}}, "bad value for widths"),
    (lambda plain: plain | {"model": plain["model"] | {"widths": [[1], [2]]}}, "bad value for widths"),
    (lambda plain: plain | {"model": [1]}, "bad value for model"),
    (lambda plain: plain | {"more": 1}, "not a RunConfig"),
    (lambda plain: [plain], "not a RunConfig"),
]


@pytest.mark.parametrize(("change", "match"), DAMAGED_SETTINGS)
def test_settings_that_are_damaged_are_named(tmp_path: Path, small_run: RunConfig, change: Any, match: str):
    folder = create_run(tmp_path, small_run)
    changed = change(json.loads(folder.config.read_text()))
    folder.config.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(CheckpointError, match=f"config.json cannot be read.*{match}|{match}") as found:
        open_run(tmp_path)
    assert len(str(found.value)) < 3000


def test_checkpoint_that_unpacks_to_more_than_its_file_is_damaged(tmp_path: Path, small_run: RunConfig):
    path = checkpoint_path(tmp_path, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2**26))
    with pytest.raises(DamagedError, match="larger unpacked than packed"):
        restore_newest(path.parent, build_session(small_run))


def _doubled(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize("part", ["model", "optimizer", "config", "version", "format", "position", "rng", "schedule"])
@pytest.mark.parametrize("levels", [40, 60])
def test_checkpoint_that_holds_itself_many_times_is_refused(
    tmp_path: Path, small_run: RunConfig, part: str, levels: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("seng.apps.train.checkpoint.MOST_VALUES", 10**5)
    _start(override(small_run, {"epochs": "1", "model.widths": "1,1"}), tmp_path)
    (path,) = checkpoints(tmp_path / "checkpoints")
    torch.save(torch.load(path, weights_only=True) | {part: _doubled(levels)}, path)
    with pytest.raises(CheckpointError, match=r"step-.*.pt is .{,400}$"):
        restore_newest(path.parent, build_session(small_run))


# -- one process a folder -------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from seng.apps.train.folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path):
    """A run in whose folder another process trains, and that process."""
    folder = make_run(tmp_path / "run", epochs=1)
    environment = {**os.environ, "PYTHONPATH": str(Path(seng.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", HOLDS, folder], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_second_process_is_refused_and_changes_nothing(call, held, option: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seng.apps.train.folder.PATIENCE", 0.1)
    folder, process = held
    (folder / "checkpoints").mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, printed = call("train", "--out", folder, option)
    assert code == 2
    assert "error: seng train: another process trains in the folder" in printed
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(folder):
        pass


def test_lock_is_the_process_s_own(tmp_path: Path):
    with locked(tmp_path), locked(tmp_path):
        pass
    none = locked(tmp_path / "none")
    with (
        pytest.raises(CheckpointError, match="the folder cannot be opened: expected a folder, got .*No such file"),
        none,
    ):
        pass
    assert list(tmp_path.iterdir()) == []
