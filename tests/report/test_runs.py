"""Run folders: what is read is what was written, and what cannot be read is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from seng.apps.recipes import build_recipe
from seng.apps.report import ReportError, read_runs
from seng.apps.report.runs import flatten, short_names
from seng.apps.train.metrics import EndRecord
from seng.apps.train.settings import override, settings

from .made import STEPS, make_records, make_run, write_run


def _only(folder: Path):
    (run,), _ = read_runs([folder])
    return run


@pytest.mark.parametrize("optimizer", ["seng", "sgd"])
def test_read_runs_returns_what_was_written(tmp_path: Path, optimizer: str):
    config = build_recipe("digits", optimizer)
    records = make_records(optimizer, 3)
    run = _only(write_run(tmp_path / "run", config, records))
    assert [json.dumps(dataclasses.asdict(r)) for r in run.records] == [
        json.dumps(dataclasses.asdict(r)) for r in records
    ]
    assert len(run.records) == len(run.starts) + len(run.steps) + len(run.epochs) + len(run.curvature) + 1
    assert run.settings.items() >= {k: v for k, v in settings(config).items() if not isinstance(v, tuple)}.items()
    assert (run.name, run.recipe) == ("run", "digits")


@pytest.mark.parametrize(
    ("changes", "name"), [({}, "SENG"), ({"base": "muon"}, "SENG + Muon"), ({"base": "adamw"}, "SENG + AdamW")]
)
def test_run_names_its_optimizer_with_its_base(tmp_path: Path, changes: dict[str, str], name: str):
    config = override(build_recipe("digits"), changes)
    assert _only(write_run(tmp_path / "run", config, make_records("seng", 1))).optimizer == name


def test_run_says_how_far_it_is(tmp_path: Path):
    config = override(build_recipe("digits"), {"epochs": "3"})
    records = make_records("sgd", 3)
    going = records[: len(records) // 2]
    assert _only(write_run(tmp_path / "whole", config, records)).status == "3 of 3 epochs"
    assert _only(write_run(tmp_path / "going", config, going)).status == "1 of 3 epochs, not finished"
    ended = [*going, EndRecord(2, 30, 0.4, "test_loss=0.7")]
    assert _only(write_run(tmp_path / "ended", config, ended)).status == "1 of 3 epochs, ended by test_loss=0.7"


def test_read_runs_reads_a_folder_given_twice_once_and_says_so(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    runs, notes = read_runs([folder, tmp_path / "." / "run"])
    assert len(runs) == 1
    assert notes == ("run was given 2 times and is shown once.",)


def test_read_runs_notes_different_recipes(tmp_path: Path):
    other = write_run(tmp_path / "other", build_recipe("fashion-resnet", "sgd"), make_records("sgd", 1))
    _, notes = read_runs([make_run(tmp_path / "run"), other])
    assert notes == ("The runs are of different recipes (digits, fashion-resnet): their losses do not compare.",)


def test_short_names_take_the_parents_that_tell_folders_apart():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/z"), Path("/b/y/run")]
    assert short_names(paths) == ["x/run", "a/y/run", "z", "b/y/run"]


def test_flatten_names_settings_as_the_program_does():
    assert flatten({"lr": 0.1, "seng": {"power": 1, "inner": {"rank": 2}}}) == {
        "lr": 0.1,
        "seng.power": 1,
        "seng.inner.rank": 2,
    }


def test_read_runs_refuses_a_folder_that_is_no_run(tmp_path: Path):
    with pytest.raises(ReportError, match=r"this is no run: expected .*config\.json, got None"):
        read_runs([tmp_path])
    with pytest.raises(ReportError, match=r"this is no run: expected .*missing/config\.json"):
        read_runs([tmp_path / "missing"])


@pytest.mark.parametrize(("text", "problem"), [("{", "is damaged"), ("[]", "no settings"), ("{}", "no settings")])
def test_read_runs_names_settings_that_cannot_be_read(tmp_path: Path, text: str, problem: str):
    folder = make_run(tmp_path / "run")
    (folder / "config.json").write_text(text)
    with pytest.raises(ReportError, match=rf"run/config\.json .*{problem}|run/config\.json {problem}"):
        read_runs([folder])


@pytest.mark.parametrize(
    "line", ['{"kind": "step", "epo', "[1, 2]", '{"kind": "step"}', '{"kind": "unheard of"}', '{"step": 3}']
)
def test_read_runs_names_the_line_that_is_damaged(tmp_path: Path, line: str):
    metrics = make_run(tmp_path / "run") / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:4], line, *lines[5:]]) + "\n")
    with pytest.raises(ReportError, match=r"run/metrics\.jsonl is damaged: .* got .line 5: "):
        read_runs([metrics.parent])


def test_read_runs_names_a_file_that_is_no_text(tmp_path: Path):
    metrics = make_run(tmp_path / "run") / "metrics.jsonl"
    metrics.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ReportError, match=r"run/metrics\.jsonl is damaged"):
        read_runs([metrics.parent])


def test_read_runs_passes_over_a_last_line_cut_short(tmp_path: Path):
    folder = make_run(tmp_path / "run", "sgd", epochs=2)
    before = _only(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch"')
    assert _only(folder).records == before.records
    assert before.last.step == 2 * STEPS


@pytest.mark.parametrize("written", ["nothing", "an empty file", "a start"])
def test_read_runs_refuses_a_run_without_numbers(tmp_path: Path, written: str):
    folder = write_run(tmp_path / "run", build_recipe("digits"), make_records("sgd", 1)[: written == "a start"])
    if written == "nothing":
        (folder / "metrics.jsonl").unlink()
    with pytest.raises(ReportError, match=r"run/metrics\.jsonl has no records yet: .* Wait for"):
        read_runs([folder])
