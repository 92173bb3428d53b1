"""Reading the pages: python blocks, tables, links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def python_blocks(path: Path) -> list[tuple[int, str]]:
    """Line number and text of each fenced python block."""
    found = re.finditer(r"^```python\n(.*?)^```$", text_of(path), re.MULTILINE | re.DOTALL)
    return [(text_of(path)[: match.start(1)].count("\n"), match[1]) for match in found]


def section(path: Path, heading: str) -> str:
    """Text under a heading of the second level."""
    after = text_of(path).split(f"\n## {heading}\n", 1)[1]
    return after.split("\n## ", 1)[0]


def tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of each table by the first cell of its head."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found[head[0]] = rows
    return found


def named(rows: list[list[str]]) -> list[str]:
    """Names in code spans of the first column."""
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
