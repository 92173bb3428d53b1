"""Panels hold the records' own numbers, and only panels that hold some exist."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seng.apps.recipes import build_recipe
from seng.apps.report import Content, Run, gather, read_runs
from seng.apps.report.panels import (
    BELOW_TEST,
    MOST_LAYERS,
    MOST_POINTS,
    SPECTRUM,
    Panel,
    curve_panels,
    eigenvalue_ranks,
    shown_layers,
    state_panels,
    thin,
    time_unit,
)
from seng.apps.train import records as made_records
from seng.apps.train.metrics import StepRecord

from .made import LAYERS, make_records, make_run, write_run


def _points(panel: Panel, run: int, role: str, layer: str | None = None) -> list[tuple[float, float]]:
    (line,) = [line for line in panel.lines if (line.run, line.role, line.layer) == (run, role, layer)]
    return list(zip(line.x, line.y, strict=True))


def test_curves_are_the_records(content: Content):
    panels = {panel.key: panel for panel in content.curves}
    assert list(panels) == ["loss-steps", "loss-time", "accuracy-steps", "accuracy-time"]
    for number, run in enumerate(content.runs):
        steps, epochs = run.steps, run.epochs
        assert _points(panels["loss-steps"], number, "training") == [(r.step, r.loss) for r in steps]
        assert _points(panels["loss-time"], number, "training") == [(r.seconds, r.loss) for r in steps]
        assert _points(panels["loss-steps"], number, "test") == [(r.step, r.test_loss) for r in epochs]
        assert _points(panels["loss-time"], number, "test") == [(r.seconds, r.test_loss) for r in epochs]
        assert _points(panels["accuracy-steps"], number, "training") == [(r.step, r.train_accuracy) for r in epochs]
        assert _points(panels["accuracy-time"], number, "test") == [(r.seconds, r.test_accuracy) for r in epochs]
        assert _points(content.rate, number, "setting") == [(r.step, r.lr) for r in steps]


def test_states_are_the_records(content: Content):
    panels = {panel.key: panel for panel in content.states}
    assert list(panels) == ["dimension", "damping", "top", "cosine", "spectrum"]
    records = content.runs[0].curvature
    for layer in LAYERS:
        states = [(record.step, record.layers[layer]) for record in records]
        for key, name in (("dimension", "effective_dimension"), ("damping", "damping")):
            assert _points(panels[key], 0, "layer", layer) == [(step, state[name]) for step, state in states]
        assert _points(panels["top"], 0, "layer", layer) == [(s, state["top_eigenvalues"][0]) for s, state in states]
        known = [(step, state["cosine"]) for step, state in states if state["cosine"] is not None]
        assert _points(panels["cosine"], 0, "layer", layer) == known
        assert _points(panels["spectrum"], 0, "layer", layer) == list(enumerate(records[-1].spectra[layer], 1))
    assert {line.run for panel in content.states for line in panel.lines} == {0}


def test_panels_are_left_out_where_no_run_has_them(tmp_path: Path):
    config = build_recipe("digits", "sgd")
    content = gather([write_run(tmp_path / "run", config, make_records("sgd", 2, classes=False))])
    assert [panel.key for panel in content.curves] == ["loss-steps", "loss-time"]
    assert content.states == ()


def test_accuracy_of_a_first_epoch_comes_from_its_steps(tmp_path: Path):
    records = [record for record in make_records("sgd", 1) if record.kind == "step"]
    content = gather([write_run(tmp_path / "run", build_recipe("digits", "sgd"), records)])
    accuracy = content.curves[2]
    assert _points(accuracy, 0, "training") == [(r.step, r.accuracy) for r in content.runs[0].steps]
    assert {line.role for panel in content.curves for line in panel.lines} == {"training"}


def test_long_runs_are_thinned_to_records_of_theirs(tmp_path: Path):
    records = [StepRecord(1, step, 1 / step, None, 0.1, 0.1 * step, 10.0) for step in range(1, 3 * MOST_POINTS)]
    content = gather([write_run(tmp_path / "run", build_recipe("digits", "sgd"), records)])
    points = _points(content.curves[0], 0, "training")
    assert len(points) == MOST_POINTS
    assert points[0] == (1, 1.0)
    assert points[-1] == (3 * MOST_POINTS - 1, 1 / (3 * MOST_POINTS - 1))
    assert set(points) <= {(record.step, record.loss) for record in records}


@given(st.integers(0, 300), st.integers(2, 80))
def test_thin_keeps_order_and_both_ends(count: int, most: int):
    kept = thin(range(count), most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
        gaps = [after - before for before, after in itertools.pairwise(kept)]
        assert max(gaps, default=1) - min(gaps, default=1) <= 1


@given(st.integers(1, 400))
def test_eigenvalue_ranks_undo_the_thinning_of_records(samples: int):
    values = made_records.thin([float(rank) for rank in range(1, samples + 1)])
    assert made_records.SPECTRUM == SPECTRUM
    assert eigenvalue_ranks(len(values), samples) == values


def test_eigenvalue_ranks_of_a_truncated_spectrum_count_from_one():
    assert eigenvalue_ranks(5, 256) == [1, 2, 3, 4, 5]


def test_shown_layers_are_few_with_both_ends():
    layers = [f"layer{k}" for k in range(54)]
    shown = shown_layers(layers)
    assert len(shown) == MOST_LAYERS
    assert (shown[0], shown[-1]) == ("layer0", "layer53")
    assert shown_layers(LAYERS) == LAYERS


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [(3.0, ("seconds", 1.0)), (599.0, ("seconds", 1.0)), (600.0, ("minutes", 60.0)), (10800.0, ("hours", 3600.0))],
)
def test_time_unit_suits_the_longest_run(content: Content, seconds: float, unit: tuple[str, float]):
    run = content.runs[0]
    long = Run(run.path, run.name, run.settings, (replace(run.steps[-1], step=10**6, seconds=seconds),))
    assert time_unit([content.runs[1], long]) == unit
    panel = curve_panels([content.runs[1], long])[1]
    assert panel.x_label == f"{unit[0]} of training"
    assert _points(panel, 1, "training")[0][0] == seconds / unit[1]


def test_loss_axis_shows_all_but_batches_far_below_the_best_test_loss(tmp_path: Path):
    config = build_recipe("digits", "sgd")
    (run,), _ = read_runs([write_run(tmp_path / "run", config, make_records("sgd", 2))])
    losses = [record.loss for record in run.steps] + [record.test_loss for record in run.epochs]
    low, high = _span(curve_panels([run])[0])
    assert 0.8 * min(losses) < low < min(losses)
    assert max(losses) < high < 1.2 * max(losses)
    deep = replace(run, records=(*run.records, replace(run.steps[-1], loss=1e-9)))
    least = min(epoch.test_loss for epoch in run.epochs) / BELOW_TEST
    assert 0.8 * least < _span(curve_panels([deep])[0])[0] < least


def test_spectrum_axis_ends_where_eigenvalues_are_rounding_errors(content: Content):
    run = content.runs[0]
    last = run.curvature[-1]
    spectra = {layer: [*values[:-1], 1e-40] for layer, values in last.spectra.items()}
    (spectrum,) = state_panels([replace(run, records=(*run.records, replace(last, spectra=spectra)))])[-1:]
    low, high = _span(spectrum)
    largest = max(values[0] for values in spectra.values())
    assert largest < high < 10 * largest
    assert 1e-13 * largest < low < 1e-12 * largest


def test_loss_axis_bears_a_single_value(tmp_path: Path):
    record = StepRecord(1, 1, 0.5, None, 0.1, 0.1, 10.0)
    (run,), _ = read_runs([write_run(tmp_path / "run", build_recipe("digits", "sgd"), [record])])
    low, high = _span(curve_panels([run])[0])
    assert low < 0.5 < high


def test_accuracy_axis_shows_all_that_follows_the_first_quarter(content: Content):
    for panel in content.curves[2:]:
        low, high = _span(panel)
        shown = [[low <= y <= high for y in line.y] for line in panel.lines if line.role == "test"]
        assert all(all(line[1:]) for line in shown)  # of six epochs
        assert not all(line[0] for line in shown)


def _span(panel: Panel) -> tuple[float, float]:
    assert panel.span is not None
    return panel.span


def test_states_of_many_records_stay_few(tmp_path: Path):
    (run,), _ = read_runs([make_run(tmp_path / "run", epochs=2)])
    many = replace(run, records=run.records + run.curvature * 100)
    assert max(len(line.x) for panel in state_panels([many]) for line in panel.lines) <= 300
