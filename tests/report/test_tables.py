"""Tables: the cells are the records' numbers in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from seng.apps.recipes import build_recipe
from seng.apps.report import Content, gather, parse_target, words
from seng.apps.report.tables import counter_rows, environment_rows, layer_rows, result_rows, setting_rows

from .made import LAYERS, make_records, make_run, write_run


def _rows(content: Content):
    return {row.name: row for row in result_rows(content.summaries, content.targets)}


def test_results_are_the_last_and_best_epochs(content: Content):
    rows = _rows(content)
    for number, run in enumerate(content.runs):
        last = run.epochs[-1]
        assert rows["Progress"].cells[number] == "6 of 6 epochs"
        assert rows["Test loss, last"].cells[number] == f"{last.test_loss:.4g}"
        assert rows["Test loss, best"].cells[number] == f"{last.test_loss:.4g} (epoch 6)"
        assert rows["Test accuracy, last"].cells[number] == f"{last.test_accuracy:.2%}"
        assert rows["Test accuracy in five guesses, last"].cells[number] == f"{last.test_accuracy5:.2%}"
        assert rows["Training time"].cells[number] == f"{last.seconds:.3g} s"
        assert rows["Time a step"].cells[number] == f"{1000 * last.seconds / last.step:.3g} ms"


def test_results_mark_the_best_of_each_row(content: Content):
    rows = _rows(content)
    assert rows["Test loss, best"].best == {0}
    assert rows["Test accuracy, last"].best == {0}
    assert rows["Time a step"].best == {1, 2}
    assert rows["Samples a second"].best == frozenset()  # all equal


def test_results_tell_the_time_to_targets(folders: list[Path]):
    content = gather(folders, [parse_target("test_loss=0.2")])
    row = _rows(content)["To test loss ≤ 0.2"]
    epoch = content.summaries[0].targets[0]
    assert epoch is not None
    assert row.cells == (f"{epoch.seconds:.3g} s (step {epoch.step})", "not reached", "not reached")


def test_results_leave_out_rows_without_numbers(tmp_path: Path):
    records = make_records("sgd", 2, classes=False)
    regression = gather([write_run(tmp_path / "regression", build_recipe("digits", "sgd"), records)])
    assert not [name for name in _rows(regression) if "accuracy" in name]
    begun = gather([write_run(tmp_path / "begun", build_recipe("digits", "sgd"), records[:3])])
    assert list(_rows(begun)) == ["Progress", "Training time", "Time a step", "Samples a second"]


def test_settings_are_dealt_into_differing_partial_and_all(content: Content):
    differing, partial, every = setting_rows(content.runs)
    assert {row.name: row.cells for row in differing} == {
        "optimizer.name": ("seng", "sgd", "adamw"),
        "optimizer.lr": ("0.1", "0.3", "0.03"),
        "optimizer.weight_decay": ("0.0005", "0.0005", "0.01"),
    }
    assert {row.name for row in partial} == {row.name for row in every if row.name.startswith("optimizer.seng.")}
    assert all(row.cells[1:] == ("–", "–") != row.cells[:1] for row in partial)
    leaves = {path for run in content.runs for path in run.settings} - {"optimizer.seng"}
    assert {row.name for row in every} == leaves


def test_counters_and_environment_are_those_recorded_last(content: Content):
    refreshes = content.runs[0].curvature[-1].counters["refreshes"]
    assert [(row.name, row.cells) for row in counter_rows(content.summaries)] == [
        ("skipped steps", ("0", "–", "–")),
        ("refreshes", (str(refreshes), "–", "–")),
    ]
    assert ("torch", ("2.13.0",) * 3) in [(row.name, row.cells) for row in environment_rows(content.runs)]
    run = content.runs[0]
    moved = replace(run, records=(*run.records, replace(run.starts[0], environment={"torch": "2.14.0"})))
    assert environment_rows([moved])[0].cells == ("2.14.0",)


def test_layer_rows_are_the_last_state(content: Content):
    heads, rows = layer_rows(content.runs[0])
    assert [row.name for row in rows] == list(LAYERS)
    state = content.runs[0].curvature[-1].layers[LAYERS[1]]
    cells = dict(zip(heads, rows[1].cells, strict=True))
    assert cells["effective dimension"] == f"{state['effective_dimension']:.4g}"
    assert cells["largest eigenvalue"] == f"{state['top_eigenvalues'][0]:.3g}"
    assert cells["memory"] == words.memory(state["nbytes"])


def test_layer_rows_have_a_dash_before_the_first_direction(tmp_path: Path):
    records = make_records("seng", 1)
    first = next(k for k, record in enumerate(records) if record.kind == "curvature")
    content = gather([write_run(tmp_path / "run", build_recipe("digits"), records[: first + 1])])
    heads, rows = layer_rows(content.runs[0])
    assert {row.cells[heads.index("cosine")] for row in rows} == {words.NONE}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.123 s"), (59.4, "59.4 s"), (60.0, "1 min 00 s"), (3599.7, "1 h 00 min"), (7384.0, "2 h 03 min")],
)
def test_duration_reads_as_people_say_it(seconds: float, text: str):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (64_000, "62.5 KiB"), (3 << 30, "3 GiB")]
)
def test_memory_takes_the_unit_that_suits(count: int, text: str):
    assert words.memory(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "none"), (True, "yes"), ([16, 32], "16, 32"), ((), "none"), (0.5, "0.5"), ("sum", "sum")]
)
def test_setting_is_written_as_the_program_reads_it(value: object, text: str):
    assert words.setting(value) == text


def test_unfinished_run_shows_a_dash_for_epochs_to_come(tmp_path: Path):
    begun = write_run(tmp_path / "begun", build_recipe("digits", "sgd"), make_records("sgd", 1)[:3])
    rows = _rows(gather([make_run(tmp_path / "whole"), begun]))
    assert rows["Test loss, last"].cells[1] == words.NONE
    assert "To test loss ≤ 0" not in " ".join(rows)
