"""The page: one HTML file that holds its data, its style and its scripts, and asks nothing of any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from . import tables, words
from .content import Content
from .palette import DARK, LIGHT
from .panels import shown_layers

SOURCES = Path(__file__).with_name("assets")


def render_page(content: Content) -> str:
    """Return the page as HTML.

    Whatever comes from a run is escaped: the names of folders and layers are not ours to trust. The page's own policy
    lets it load nothing, so that it stays as it is wherever it is opened.
    """
    environment = Environment(
        loader=FileSystemLoader(SOURCES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # and in our order: the parts of a step have one
    return environment.get_template("report.html").render(
        content=content,
        tables=tables,
        data=page_data(content),
        light=LIGHT,
        dark=DARK,
        style=_source("report.css"),
        script=_source("report.js"),
        plotly=Markup(get_plotlyjs()),
    )


def page_data(content: Content) -> dict[str, Any]:
    """Return what the page's script draws, as plain values."""
    return {
        "runs": [
            {"name": run.name, "optimizer": run.optimizer, "layers": run.layers, "shown": shown_layers(run.layers)}
            for run in content.runs
        ],
        "panels": [panel.as_plain() for panel in (*content.curves, content.rate, *content.states) if panel.lines],
        "parts": words.PARTS,
        "step": [summary.parts for summary in content.summaries],
        "themes": {"light": vars(LIGHT), "dark": vars(DARK)},
    }


def _source(name: str) -> Markup:
    return Markup((SOURCES / name).read_text(encoding="utf-8"))
