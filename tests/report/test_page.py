"""The page as text: it holds the numbers, asks for nothing, and trusts no name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from markupsafe import escape
from plotly.offline import get_plotlyjs

from seng.apps.recipes import build_recipe
from seng.apps.report import Content, gather, render_page
from seng.apps.report.tables import counter_rows, environment_rows, result_rows, setting_rows
from seng.apps.train.metrics import StepRecord

from .made import HOSTILE_LAYER, HOSTILE_RUN, make_hostile_run, make_records, make_run, write_run


def _data(page: str) -> dict:
    (text,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def _own(page: str) -> str:
    """Return the page without the plotting library."""
    return page.replace(get_plotlyjs(), "")


def test_page_draws_the_panels_number_by_number(page: str, content: Content):
    data = _data(page)
    panels = [*content.curves, content.rate, *content.states]
    assert data["panels"] == json.loads(json.dumps([dataclasses.asdict(panel) for panel in panels]))
    assert data["step"] == [summary.parts for summary in content.summaries]
    assert [(run["name"], run["optimizer"]) for run in data["runs"]] == [
        ("seng", "SENG"),
        ("sgd", "SGD"),
        ("adamw", "AdamW"),
    ]


def test_page_shows_every_cell_of_its_tables(page: str, content: Content):
    shown = re.sub(r' class="best"', "", _own(page))
    rows = [*result_rows(content.summaries, content.targets), *setting_rows(content.runs)[2]]
    rows += [*counter_rows(content.summaries), *environment_rows(content.runs)]
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        assert f'<th scope="row">{escape(row.name)}</th>{cells}' in shown


def test_page_asks_for_nothing(page: str):
    own = _own(page)
    assert "http:" not in own
    assert "https:" not in own
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b|\b(src|href|action)\s*=|@import|url\(", own)
    policy = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy == ["default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"]


def test_page_escapes_names(tmp_path: Path):
    page = _own(render_page(gather([make_hostile_run(tmp_path), make_run(tmp_path / "tame")])))
    assert "<img" not in page
    assert "<b>bold" not in page
    assert page.count("<script") == page.count("</script>") == 3  # data, library, ours
    assert str(escape(HOSTILE_RUN)) in page
    assert str(escape(HOSTILE_LAYER)) in page
    assert _data(page)["runs"][0] | {"shown": None} == {
        "name": HOSTILE_RUN,
        "optimizer": "SENG",
        "layers": [HOSTILE_LAYER],
        "shown": None,
    }


def test_page_has_no_frame_without_content(tmp_path: Path):
    records = [
        dataclasses.replace(record, parts={}) if record.kind == "step" else record
        for record in make_records("sgd", 2, classes=False)
    ]
    page = render_page(gather([write_run(tmp_path / "run", build_recipe("digits", "sgd"), records)]))
    assert re.findall('id="(plot-.*?)"', _own(page)) == ["plot-loss-steps", "plot-loss-time", "plot-rate"]
    for absent in ("Curvature", "Time of a mean step", "Accuracy", "Counted by", "Those that differ", "No setting"):
        assert absent not in _own(page)


def test_page_of_a_run_with_one_record(tmp_path: Path):
    record = next(record for record in make_records("seng", 1) if isinstance(record, StepRecord))
    page = render_page(gather([write_run(tmp_path / "run", build_recipe("digits"), [record])]))
    assert "0 of 20 epochs, not finished" in page
    (loss,) = [panel["lines"] for panel in _data(page)["panels"] if panel["key"] == "loss-steps"]
    assert [(line["x"], line["y"]) for line in loss] == [([record.step], [record.loss])]


def test_page_tells_equal_settings_and_notes(tmp_path: Path):
    folders = [make_run(tmp_path / name, "sgd") for name in ("one", "two")]
    page = _own(render_page(gather([*folders, folders[0]])))
    assert "No setting differs." in page
    assert "one was given 2 times and is shown once." in page


def test_page_is_the_same_for_the_same_runs(folders: list[Path], page: str):
    assert render_page(gather(folders)) == page
