"""What runs came to, as a page and pictures that people look at.

``gather`` reads the run folders and works out what there is to say (``runs``, ``summary``, ``panels``, ``tables``);
``render_page`` and ``draw_pictures`` show the same content, one for the browser and one for everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...files import write_atomically
from .content import Content, gather
from .errors import ReportError
from .page import render_page
from .pictures import draw_pictures
from .runs import Run, read_runs
from .summary import Summary, Target, as_plain, parse_target


def write_report(folders: Sequence[Path], page: Path, targets: Iterable[Target] = ()) -> dict[str, Any]:
    """Write the report of some runs: the page, and pictures beside it whose names begin with the page's.

    Args:
        folders: folders that ``seng train`` wrote, at least one.
        page: the HTML file; replaced where it exists. Its folder is made where absent.
        targets: values whose times to compare, beside those found in the runs.

    Returns:
        Plain values: ``page``, ``pictures``, ``notes``, and under ``runs`` the numbers of each.

    Raises:
        ReportError: a folder holds no run that can be shown, or the files cannot be written.

    Cost: reading the records; the page holds at most about 1,000 points a curve and is 5 MB for the plotting library.
    """
    content = gather(folders, targets)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        text = render_page(content)
        write_atomically(page, lambda file: file.write(text.encode()))
        pictures = draw_pictures(content, page)
    except OSError as error:
        problem, fix = "the report cannot be written", "Choose another --out"
        raise ReportError("seng report", problem, expected="a file to write", got=str(error), fix=fix) from error
    return {
        "page": str(page),
        "pictures": [str(picture) for picture in pictures],
        "notes": list(content.notes),
        "runs": [as_plain(summary, content.targets) for summary in content.summaries],
    }


__all__ = [
    "Content",
    "ReportError",
    "Run",
    "Summary",
    "Target",
    "draw_pictures",
    "gather",
    "parse_target",
    "read_runs",
    "render_page",
    "write_report",
]
