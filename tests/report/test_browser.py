"""The page in a real browser: scripts run, panels are drawn, controls work, and nothing is loaded or overflows."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from seng.apps.report import Content, gather, render_page
from seng.apps.report.palette import DARK, LIGHT, Palette
from seng.apps.report.words import PARTS

from .browser import find_browser, probe, take_picture
from .made import HOSTILE_LAYER, HOSTILE_RUN, LAYERS, make_hostile_run

WIDTHS = {"wide": 1200, "phone": 400}
LOOK = 1.0 / 255  # two colours that a picture's 8 bits cannot tell apart
SCRIPT = """
  const plots = [...document.querySelectorAll(".plot")];
  const each = (read) => Object.fromEntries(plots.map((plot) => [plot.id, read(plot)]));
  const drawn = () => each((plot) => plot.data.map((trace) => [trace.meta, trace.y]));
  const box = (element) => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; };
  const strokes = (id) => [...document.querySelectorAll(`#${id} path.js-line`)].map((path) => path.style.stroke);
  const choose = (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  const click = (selector) => document.querySelector(selector).click();
  const ground = () => getComputedStyle(document.body).backgroundColor;
  const answer = {
    inner: innerWidth,
    page: document.documentElement.scrollWidth,
    boxes: each(box),
    paths: each((plot) => plot.querySelectorAll("path.js-line, .point path").length),
    first: drawn(),
    ground: ground(),
    strokes: strokes("plot-loss-steps"),
    layers: [...document.getElementById("choose-layer").options].map((option) => option.text),
    bars: document.getElementById("plot-parts").data.map((trace) => [trace.name, trace.x]),
  };
  click("button[data-run='1']");
  answer.without = drawn();
  click("button[data-run='1']");
  click("#training");
  answer.tests = drawn();
  click("#training");
  choose("choose-layer", "2");
  answer.layer = drawn();
  choose("choose-layer", "");
  answer.again = drawn();
  click("#theme");
  answer.dark = { ground: ground(), strokes: strokes("plot-loss-steps") };
  answer.problems = problems;
  return answer;
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The program of a browser."""
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def answers(browser: str, page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found in a wide window and on a phone."""
    return probe(browser, page, SCRIPT, WIDTHS, tmp_path_factory.mktemp("probe"))


@pytest.fixture(params=WIDTHS)
def answer(answers: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the probe found at one width."""
    return answers[request.param]


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(round(255 * part)) for part in to_rgb(colour))})"


def test_page_runs_without_errors_and_without_loads(answer: dict[str, Any]):
    assert answer["problems"] == []


def test_page_does_not_overflow(answer: dict[str, Any]):
    assert answer["inner"] in WIDTHS.values()
    assert answer["page"] <= answer["inner"]


def test_every_panel_is_drawn_inside_the_page(answer: dict[str, Any], content: Content):
    keys = [panel.key for panel in (*content.curves, content.rate, *content.states)]
    assert set(answer["boxes"]) == {f"plot-{key}" for key in [*keys, "parts"]}
    for name, (left, _, width, height) in answer["boxes"].items():
        assert width > 200, name
        assert height > 200, name
        assert left >= 0, name
        assert left + width <= answer["inner"], name
        assert answer["paths"][name] > 0, name


def test_drawn_curves_are_the_panels(answer: dict[str, Any], content: Content):
    for panel in (*content.curves, content.rate):
        drawn = [(meta["run"], meta["role"], y) for meta, y in answer["first"][f"plot-{panel.key}"]]
        assert drawn == [(line.run, line.role, line.y) for line in panel.lines]


def test_bars_are_the_mean_times_of_the_parts(answer: dict[str, Any], content: Content):
    expected = [
        [name, [1000 * summary.parts.get(part, 0) for summary in content.summaries]] for part, name in PARTS.items()
    ]
    assert answer["bars"] == expected


def test_curves_have_the_colours_of_their_runs_in_both_themes(answer: dict[str, Any]):
    for strokes, ground, palette in (
        (answer["strokes"], answer["ground"], LIGHT),
        (answer["dark"]["strokes"], answer["dark"]["ground"], DARK),
    ):
        assert ground == _rgb(palette.ground)
        assert set(strokes) == {_rgb(colour) for colour in palette.runs[:3]}


def test_a_run_that_is_switched_off_leaves_every_panel(answer: dict[str, Any]):
    for name, traces in answer["without"].items():
        if name != "plot-parts":
            assert [meta for meta, _ in traces] == [meta for meta, _ in answer["first"][name] if meta["run"] != 1], name
    assert answer["again"] == answer["first"]


def test_training_curves_can_be_hidden(answer: dict[str, Any]):
    assert {meta["role"] for meta, _ in answer["tests"]["plot-loss-steps"]} == {"test"}
    assert answer["tests"]["plot-rate"] == answer["first"]["plot-rate"]


def test_one_layer_can_be_chosen(answer: dict[str, Any]):
    assert answer["layers"] == ["all, by depth", *LAYERS]
    assert [meta["layer"] for meta, _ in answer["first"]["plot-dimension"]] == list(LAYERS)
    assert [meta["layer"] for meta, _ in answer["layer"]["plot-dimension"]] == [LAYERS[2]]


def test_names_of_runs_and_layers_are_text_in_the_browser(browser: str, tmp_path: Path):
    page = render_page(gather([make_hostile_run(tmp_path)]))
    script = """
      const gd = document.getElementById("plot-dimension");
      return {
        problems, hacked: window.hacked === undefined, images: document.images.length,
        names: gd.data.map((trace) => trace.name), layer: document.getElementById("choose-layer").options[1].text,
      };
    """
    answer = probe(browser, page, script, {"wide": 1200}, tmp_path)["wide"]
    assert (answer["problems"], answer["hacked"], answer["images"]) == ([], True, 0)
    assert answer["layer"] == HOSTILE_LAYER
    assert [html.unescape(name) for name in answer["names"]] == [f"layer {HOSTILE_LAYER}, {HOSTILE_RUN} (SENG)"]
    assert "<" not in answer["names"][0]


@pytest.mark.parametrize(("palette", "options"), [(LIGHT, ()), (DARK, ("--force-dark-mode",))], ids=["light", "dark"])
def test_picture_of_the_page_shows_the_curves(
    browser: str, page: str, answers: dict[str, Any], tmp_path: Path, palette: Palette, options: tuple[str, ...]
):
    (tmp_path / "page.html").write_text(page)
    take_picture(browser, tmp_path / "page.html", tmp_path / "page.png", WIDTHS["wide"], 1600, *options)
    pixels = imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[:2] == (1600, WIDTHS["wide"])
    assert _count(pixels, palette.ground) > pixels.shape[0] * pixels.shape[1] / 20
    left, top, width, height = (round(part) for part in answers["wide"]["boxes"]["plot-loss-steps"])
    plot = pixels[top : top + height, left : left + width]
    assert _count(plot, palette.card) > width * height / 2
    for colour in palette.runs[:3]:
        assert _count(plot, colour) > 100, f"{colour} is not in the picture"


def _count(pixels: np.ndarray, colour: str) -> int:
    return int((np.abs(pixels - np.array(to_rgb(colour))) < LOOK / 2).all(-1).sum())
