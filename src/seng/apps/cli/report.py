"""``seng report``: what runs came to, as a page and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import AsJson

EXAMPLES = (
    "seng report runs/digits",
    "seng report runs/seng runs/sgd runs/adamw --out report.html",
    "seng report runs/* --target test_accuracy=0.97 --json",
)


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that `seng train` wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The page; pictures are written beside it.")] = Path("report.html"),
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE", help="Compare the time to a value, as test_accuracy=0.97; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side, on one page and in pictures.

    The page is one HTML file that works without a network; the pictures are PNGs beside it.
    """
    try:
        from ..report import parse_target, write_report  # plotting libraries, which --help does not need
    except ImportError as error:  # pragma: no cover
        raise SystemExit(f"seng report: {error.name} is missing. Run: pip install 'seng[report]'") from error

    written = write_report(runs, out, [parse_target(text) for text in target or ()])
    if as_json:
        print(json.dumps(written, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for note in written["notes"]:
        console.print(note, markup=False)
    for picture in written["pictures"]:
        console.print(f"picture: {picture}", markup=False)
    console.print(f"page: {written['page']}", markup=False)
