"""Renders the figures of docs/integrations.md and docs/func.md from the committed results.

python benchmarks/integrations_figures.py --write    # replaces what stands between the marks of each page
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from rendered import load, render

LIBRARIES = ("deepxde", "pina")
Row = dict[str, Any]


def integrations_page() -> str:
    """Return errors inside DeepXDE and PINA."""
    lines = []
    for library in LIBRARIES:
        found = load(f"integrations-{library}")
        lines += [
            f"{found['package']}, {found['budget']:g} CPU seconds, {place(found)}",
            "",
            "| problem | method | relative L2 error, median | least to largest | steps, median | seeds |",
            "|---" * 6 + "|",
        ]
        for (problem, method), rows in grouped(found["runs"], "problem", "method").items():
            steps = median(row["steps"] for row in rows)
            lines.append(f"| {problem} | {method} | {spread(rows)} | {steps:,.0f} | {len(rows)} |")
        lines.append("")
    return "\n".join(lines).strip()


def func_page() -> str:
    """Return errors of ``fit`` with numbers of points that are found and fixed."""
    found = load("fit_points")
    lines = [
        f"{found['budget']:g} CPU seconds, {place(found)}",
        "",
        "| problem | size | relative L2 error, median | least to largest | last number of points, median | seeds |",
        "|---" * 6 + "|",
    ]
    for (problem, size), rows in grouped(found["runs"], "problem", "size").items():
        points = median(row["points"] for row in rows)
        lines.append(f"| {problem} | {size} | {spread(rows)} | {points:,.0f} | {len(rows)} |")
    return "\n".join(lines)


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return rows by their values of some keys, in the order in which these were first seen."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def spread(rows: list[Row]) -> str:
    """Return the median of errors, and their range."""
    errors = [row["error"] for row in rows]
    return f"{median(errors):.1e} | {min(errors):.1e} to {max(errors):.1e}"


def place(found: Row) -> str:
    """Return where a result was measured."""
    where = found["environment"]
    return f"one thread of {where['processor']}, torch {where['torch']}, {where['date']}, a machine shared with others:"


PAGES: dict[str, Callable[[], str]] = {"docs/integrations.md": integrations_page, "docs/func.md": func_page}

if __name__ == "__main__":
    render(PAGES)
