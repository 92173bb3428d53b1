"""Last and best values, times to targets, and where a step's time goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seng.apps.recipes import build_recipe
from seng.apps.report import Content, ReportError, gather, parse_target, read_runs
from seng.apps.report.summary import METRICS, as_plain, best_epoch, choose_targets, step_parts, summarize
from seng.apps.train.metrics import EpochRecord, StepRecord
from seng.apps.train.target import METRICS as KNOWN
from seng.apps.train.target import Target

from .made import PARTS, make_records, make_run, write_run

ROUNDING = 1e-12  # of sums of a few float64 numbers


def _epochs(path: Path, losses: list[float], accuracies: list[float | None]):
    records = [
        EpochRecord(epoch, 10 * epoch, loss, accuracy, loss, accuracy, 0.5 * epoch, 100.0)
        for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1)
    ]
    (run,), _ = read_runs([write_run(path, build_recipe("digits", "sgd"), records)])
    return run


def test_metrics_have_words_for_all_targets():
    assert set(METRICS) == set(KNOWN)


def test_summary_takes_the_first_of_equally_good_epochs(tmp_path: Path):
    run = _epochs(tmp_path / "run", [0.5, 0.2, 0.2, 0.3], [0.7, 0.8, 0.9, 0.9])
    summary = summarize(run, [])
    assert summary.best["test_loss"].epoch == 2
    assert summary.best["test_accuracy"].epoch == 3
    assert summary.last is not None
    assert (summary.last.epoch, summary.steps, summary.seconds) == (4, 40, 2.0)


def test_summary_leaves_out_what_a_run_does_not_measure(tmp_path: Path):
    summary = summarize(_epochs(tmp_path / "run", [0.5, 0.2], [None, None]), [])
    assert set(summary.best) == {"test_loss", "train_loss"}


def test_targets_are_reached_at_the_first_epoch_that_meets_them(tmp_path: Path):
    run = _epochs(tmp_path / "run", [0.5, 0.2, 0.3], [0.7, 0.8, 0.9])
    targets = [Target("test_loss", 0.3), Target("test_accuracy", 0.8), Target("test_accuracy", 0.95)]
    reached = summarize(run, targets).targets
    assert [epoch and epoch.epoch for epoch in reached] == [2, 2, None]


def test_chosen_targets_are_reached_by_all_runs_and_are_the_best_such(content: Content):
    assert {target.metric for target in content.targets} == {"test_accuracy", "test_loss"}
    for k, target in enumerate(content.targets):
        assert all(summary.targets[k] is not None for summary in content.summaries)
        bests = [getattr(epoch, target.metric) for run in content.runs if (epoch := best_epoch(run, target.metric))]
        assert target.value in bests


def test_chosen_targets_begin_with_those_asked_for_and_those_that_end_runs(tmp_path: Path):
    config = replace(build_recipe("digits", "sgd"), until="test_accuracy=0.5")
    runs, _ = read_runs([write_run(tmp_path / "until", config, make_records("sgd", 2)), make_run(tmp_path / "other")])
    asked, until = parse_target("train_loss=0.1"), parse_target("test_accuracy=0.5")
    assert choose_targets(runs, [asked, asked])[:2] == (asked, until)
    assert choose_targets(runs[:1]) == (until,)


@pytest.mark.parametrize("text", ["", "test_loss", "loss=1", "test_loss=low", "test_accuracy=97", "test_loss=nan"])
def test_parse_target_refuses_what_no_epoch_has(text: str):
    with pytest.raises(ReportError, match="seng report: the target is out of range: expected test_accuracy"):
        parse_target(text)


def test_step_parts_weigh_records_by_their_steps_and_take_the_refresh_out(tmp_path: Path):
    parts = ({"forward": 1.0, "optimizer": 3.0, "refresh": 2.0}, {}, {"forward": 4.0, "optimizer": 6.0, "refresh": 5.0})
    records = [
        StepRecord(1, step, 1.0, None, 0.1, 1.0 * step, 10.0, part)
        for step, part in zip((10, 20, 50), parts, strict=True)
    ]
    (run,), _ = read_runs([write_run(tmp_path / "run", build_recipe("digits"), records)])
    forward, refresh = (10 * 1 + 30 * 4) / 40, (10 * 2 + 30 * 5) / 40
    assert step_parts(run) == pytest.approx({"forward": forward, "optimizer": 1.0, "refresh": refresh}, rel=ROUNDING)


def test_step_parts_add_up_to_the_step(content: Content):
    for summary in content.summaries:
        optimizer = 0.0062 if summary.name == "seng" else 0.0011  # refresh included
        assert sum(summary.parts.values()) == pytest.approx(sum(PARTS.values()) + optimizer, rel=ROUNDING)


def test_plain_summary_survives_json(content: Content):
    for summary in content.summaries:
        plain = as_plain(summary, content.targets)
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["targets"][0]["step"] is not None


def test_gather_keeps_the_order_of_the_runs(folders: list[Path]):
    assert [run.name for run in gather(folders[::-1]).runs] == ["adamw", "sgd", "seng"]
