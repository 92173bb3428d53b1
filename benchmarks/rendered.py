"""Pages whose figures are rendered from committed results: none is typed by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"


def load(name: str) -> dict[str, Any]:
    """Return a committed result."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def section(page: str) -> str:
    """Return what stands between the marks of a page's text."""
    return page.split(BEGIN)[1].split(END)[0].strip()


def render(pages: Mapping[str, Callable[[], str]]) -> bool:
    """Print each page's section, or, with ``--write``, put it between its page's marks. Return whether it wrote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the pages in place of printing their sections")
    write = parser.parse_args().write
    for name, page in pages.items():
        if not write:
            print(f"{name}\n\n{page()}\n")
            continue
        path = ROOT / name
        before, after = path.read_text().split(BEGIN)
        path.write_text(f"{before}{BEGIN}\n\n{page()}\n\n{END}{after.split(END)[-1]}")
    return write
