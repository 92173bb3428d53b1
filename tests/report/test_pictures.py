"""The PNGs: which there are, and that the curves are in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from seng.apps.recipes import build_recipe
from seng.apps.report import Content, draw_pictures, gather
from seng.apps.report.palette import LIGHT
from seng.apps.report.pictures import LONGEST, draw_figure, draw_panel, draw_parts, label, list_pictures
from seng.apps.report.words import PARTS

from .made import HOSTILE_RUN, LAYERS, make_hostile_run, make_records, make_run, write_run

LOOK = 1.0 / 255  # two colours that a picture's 8 bits cannot tell apart


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def _count(path: Path, colour: str) -> int:
    return int((np.abs(imread(path)[..., :3] - np.array(to_rgb(colour))) < LOOK / 2).all(-1).sum())


def _names(folders: list[Path]) -> list[str]:
    return [picture.name for picture in list_pictures(gather(folders))]


def test_pictures_show_runs_parts_and_layers(content: Content, tmp_path: Path):
    paths = draw_pictures(content, tmp_path / "report.html")
    assert [path.name for path in paths] == [f"report-{key}.png" for key in ("overview", "curves", "time", "curvature")]
    overview, curves, time, curvature = paths
    for colour in LIGHT.runs[:3]:
        assert _count(overview, colour) > 500
        assert _count(curves, colour) > 500
    for colour in LIGHT.parts[1:]:
        assert _count(overview, colour) > 500
        assert _count(time, colour) > 500
    assert _count(curvature, LIGHT.depth[0]) > 500
    assert _count(curvature, LIGHT.depth[-1]) > 500
    assert imread(overview).shape[1] == 1890  # twice the width of a README


def test_pictures_are_left_out_where_there_is_nothing_to_show(tmp_path: Path):
    plain = [record for record in make_records("sgd", 2, classes=False) if record.kind == "epoch"]
    folder = write_run(tmp_path / "run", build_recipe("digits", "sgd"), plain)
    assert _names([folder]) == ["overview", "curves"]


def test_pictures_of_curvature_are_one_a_run(tmp_path: Path):
    folders = [make_run(tmp_path / name, epochs=1) for name in ("one", "two")]
    assert _names(folders) == ["overview", "curves", "time", "curvature-1", "curvature-2"]


def test_pictures_bear_any_name_and_a_single_record(tmp_path: Path):
    records = make_records("sgd", 1)[:3]
    begun = write_run(tmp_path / "_^$\\frac{" / "begun", build_recipe("digits", "sgd"), records)
    content = gather([make_hostile_run(tmp_path), begun])
    overview = list_pictures(content)[0]
    figure = draw_figure(overview, content.runs)
    figure.canvas.draw()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text.replace(r"\$", "$") for text in texts] == [f"…{HOSTILE_RUN[1 - LONGEST :]} (SENG)", "begun (SGD)"]


def test_drawn_lines_are_the_panels(content: Content, axes: Axes):
    draw_panel(axes, content.curves[0], content)
    drawn = [np.transpose(line.get_xydata()).tolist() for line in axes.lines]
    assert drawn == [[line.x, line.y] for line in content.curves[0].lines]
    assert axes.get_yscale() == "log"


def test_drawn_layers_are_of_one_run(content: Content, axes: Axes):
    draw_panel(axes, content.states[0], content, run=0)
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        line.y for line in content.states[0].lines
    ]
    assert len(axes.lines) == len(LAYERS)
    other = Figure().subplots()
    draw_panel(other, content.states[0], content, run=1)
    assert not other.lines


def test_drawn_bars_are_the_parts_end_to_end(content: Content, axes: Axes):
    draw_parts(axes, content)
    for (part, name), bars in zip(PARTS.items(), axes.containers, strict=True):
        assert bars.get_label() == name
        widths = [bar.get_width() for bar in bars]  # pyright: ignore[reportAttributeAccessIssue]
        assert widths == pytest.approx([1000 * summary.parts.get(part, 0) for summary in content.summaries])
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]]  # pyright: ignore[reportAttributeAccessIssue]
    assert ends == pytest.approx([1000 * sum(summary.parts.values()) for summary in content.summaries])


def test_label_keeps_the_end_of_a_long_name(tmp_path: Path):
    content = gather([make_run(tmp_path / ("a" * 60 + "end"), "sgd", epochs=1)])
    text = label(content.runs[0])
    assert text.endswith("end (SGD)")
    assert len(text) == LONGEST + len(" (SGD)")
