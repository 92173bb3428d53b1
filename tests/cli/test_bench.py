"""``seng bench``, as a person and as a script calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seng.apps.bench import QUICK

ASKED = ("bench", "digits", "--optimizer", "sgd", "--budget", "steps", "--quick", "--out")


def test_bench_runs_trials_and_reports_them(call, tmp_path: Path):
    code, printed = call(*ASKED, tmp_path)
    assert code == 0
    trials = QUICK.trials + len(QUICK.seeds)
    assert f"{trials} trials; report: {tmp_path / 'report.md'}" in printed
    assert "digits, steps, sgd, tuning 0, seed 100: loss" in printed
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == trials
    assert "| sgd | lr " in (tmp_path / "report.md").read_text()
    code, printed = call(*ASKED, tmp_path, "--json")
    assert code == 0
    assert "tuning" not in printed.splitlines()[0]  # nothing is run again
    assert json.loads(printed[: printed.rindex("}") + 1])["protocol"] == "quick"


def test_bench_reports_without_running(call, tmp_path: Path):
    code, printed = call("bench", "core", "--out", tmp_path, "--report-only")
    assert code == 0
    assert printed.startswith("0 trials")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bench", "cores"), "unknown suite"),
        (("bench", "core", "--optimizer", "sngd"), "unknown optimizer"),
        (("bench", "core", "--budget", "hours"), "unknown budget"),
    ],
)
def test_unknown_names_are_told(call, tmp_path: Path, arguments: tuple[str, ...], told: str):
    code, printed = call(*arguments, "--out", tmp_path / "runs")
    assert code == 2
    assert told in printed
    assert not (tmp_path / "runs").exists()


def test_damaged_file_is_told(call, tmp_path: Path):
    (tmp_path / "trials.jsonl").write_text("no trial\n")
    code, printed = call(*ASKED, tmp_path)
    assert code == 2
    assert "line 1 of" in printed
