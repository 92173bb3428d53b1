"""A suite runs each trial once, whatever stops it on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seng.apps.bench import QUICK, Lines, Suite, run, run_suite, workloads
from seng.apps.bench.run import evaluation_trials
from seng.apps.bench.trial import Trial, run_trial

SUITE = Suite(("digits",), ("sgd", "adamw"), ("steps",))
PROTOCOL = replace(QUICK, share=0.01)
VARYING = ("seconds", "curve", "environment")  # what differs between equal runs


def run_all(path: Path, jobs: int = 1, suite: Suite = SUITE) -> list[dict[str, Any]]:
    run_suite(suite, PROTOCOL, Lines(path), jobs=jobs)
    return list(Lines(path))


def without_times(lines: list[dict[str, Any]]) -> list[str]:
    kept = [{name: value for name, value in line.items() if name not in VARYING} for line in lines]
    return sorted(json.dumps(line, sort_keys=True) for line in kept)


def test_each_optimizer_is_tuned_and_then_run_with_its_best_values(tmp_path: Path) -> None:
    lines = run_all(tmp_path / "trials.jsonl")
    assert len(lines) == 2 * (PROTOCOL.trials + len(PROTOCOL.seeds))
    for optimizer in SUITE.optimizers:
        own = [line for line in lines if line["optimizer"] == optimizer]
        best = min((line for line in own if line["stage"] == "tuning"), key=lambda line: line["loss"])
        judged = [line for line in own if line["stage"] == "evaluation"]
        assert [line["values"] for line in judged] == [best["values"]] * len(PROTOCOL.seeds)
        assert [line["seed"] for line in judged] == list(PROTOCOL.seeds)


def test_finished_suite_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.jsonl"
    run_all(path)
    before = path.read_bytes()
    monkeypatch.setattr(run, "run_trial", lambda trial: pytest.fail("a trial was run again"))
    run_all(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 3, 6])
def test_stopped_suite_goes_on_to_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    whole = run_all(tmp_path / "whole.jsonl")
    path, ran = tmp_path / "trials.jsonl", []

    def interrupted(trial: Trial) -> dict[str, Any]:
        if len(ran) == kept:
            raise KeyboardInterrupt
        ran.append(trial)
        return run_trial(trial)

    monkeypatch.setattr(run, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(path)
    assert len(Lines(path)) == kept
    with path.open("ab") as file:
        file.write(b'{"protocol": "quick", "workl')  # as a kill leaves it
    monkeypatch.setattr(run, "run_trial", run_trial)
    assert without_times(run_all(path)) == without_times(whole)
    assert len(path.read_text().splitlines()) == len(whole)


def test_optimizer_that_always_diverges_has_no_runs(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "trials.jsonl")
    for trial in run.tuning_trials("digits", "sgd", "steps", PROTOCOL):
        lines.add({**trial.identity(), "ended": "diverged", "loss": 9.0, "curve": []})
    assert evaluation_trials("digits", "sgd", "steps", PROTOCOL, lines) == []


def test_changed_table_makes_other_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(tmp_path / "trials.jsonl")
    trial = run.tuning_trials("digits", "sgd", "steps", PROTOCOL)[0]
    lines.add({**trial.identity(), "ended": "budget", "loss": 1.0, "curve": []})
    assert lines.find(trial.identity()) is not None
    digits = workloads.WORKLOADS["digits"]
    assert not isinstance(digits.source, str)
    monkeypatch.setitem(workloads.WORKLOADS, "digits", replace(digits, source=replace(digits.source, batch_size=32)))
    assert lines.find(trial.identity()) is None


@pytest.mark.slow
def test_several_processes_give_the_lines_of_one(tmp_path: Path) -> None:
    alone, together = run_all(tmp_path / "one.jsonl"), run_all(tmp_path / "two.jsonl", jobs=2)
    assert without_times(alone) == without_times(together)
