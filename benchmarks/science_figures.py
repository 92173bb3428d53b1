"""Renders the figures of docs/science.md and docs/theory.md, and the curves, from the committed results.

python benchmarks/science_figures.py --write    # replaces what stands between the marks of each page, and the pictures
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from rendered import ROOT, load, render

from seng.apps.science import METHODS, PROBLEMS, Record
from seng.apps.science.pictures import draw_errors

ASSETS = ROOT / "docs" / "assets"
Row = dict[str, Any]


def science_page() -> str:
    """Return what the natural gradient reaches, and errors of all methods on the problems measured."""
    where, trials = load("science")["environment"], measured()
    lines = [
        *accuracy_lines(),
        "",
        *nist_lines(),
        "",
        "All methods, each tuned (the natural gradient before its paths took steps with J held):",
        "",
        f"One thread of {where['processor']}, torch {where['torch']}, {where['date']}, a machine shared with others.",
        "",
        "| problem | CPU seconds | method | settings | relative L2 error, median | least to largest | seeds |",
        "|---" * 7 + "|",
    ]
    for (problem, method), rows in grouped(trials).items():
        best, final = judged(rows)
        errors = [row["error"] for row in final]
        span = f"{min(errors):.1e} to {max(errors):.1e}" if len(errors) > 1 else "-"
        lines.append(
            f"| {problem} | {rows[0]['budget']:g} | {method} | {written(best)} | {median(errors):.1e} | {span} |"
            f" {len(errors)} |"
        )
    for problem in dict.fromkeys(row["problem"] for row in trials):
        lines += ["", f"![Errors of the methods on {problem} against CPU seconds.](assets/science-{problem}.png)"]
        if (ASSETS / f"science-{problem}-solution.png").exists():
            text = "The network's solution, the exact one, and their difference"
            lines += ["", f"![{text}: {problem}.](assets/science-{problem}-solution.png)"]
    lines += ["", "All settings that were tried, seed 0:", "", "| problem | method | settings | error | steps |"]
    lines.append("|---" * 5 + "|")
    for row in trials:
        if row["seed"] == 0:
            cells = [
                row["problem"],
                row["method"],
                written(row["settings"]),
                f"{row['error']:.1e}",
                f"{row['steps']:,}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_lines() -> list[str]:
    """Return the errors that the natural gradient reaches with each problem's settings."""
    found = load("accuracy")
    where = found["environment"]
    lines = [
        f"What the natural gradient reaches, one thread of {where['processor']}, torch {where['torch']},"
        f" {where['date']}; jobs of others on the same cores slow each CPU second down:",
        "",
        "| problem | CPU seconds | settings | wanted | relative L2 error, median | by seed | steps |",
        "|---" * 7 + "|",
    ]
    for problem in dict.fromkeys(row["problem"] for row in found["runs"]):
        rows = [row for row in found["runs"] if row["problem"] == problem]
        errors, first = [row["error"] for row in rows], rows[0]
        lines.append(
            f"| {problem} | {PROBLEMS[problem]().seconds:g} | {written(first['settings'])} | {first['target']:.0e} |"
            f" {median(errors):.1e} | {', '.join(f'{error:.1e}' for error in errors)} |"
            f" {', '.join(str(row['steps']) for row in rows)} |"
        )
    return lines


def nist_lines() -> list[str]:
    """Return correct digits of certified regressions."""
    runs = load("nist")["runs"]
    dampings = sorted({row["damping"] for row in runs})
    cells = {(row["problem"], row["start"], row["damping"]): row for row in runs}
    lines = [
        "Correct digits of the worst parameter of NIST's certified regressions, of 11 that are certified, and steps:",
        "",
        "| problem | " + " | ".join(f"start {k}, damping {damping:g}" for damping in dampings for k in (1, 2)) + " |",
        "|---" * (1 + 2 * len(dampings)) + "|",
    ]
    for problem in dict.fromkeys(row["problem"] for row in runs):
        found = [cells[problem, k, damping] for damping in dampings for k in (1, 2)]
        lines.append(f"| {problem} | " + " | ".join(f"{row['digits']:.1f} ({row['steps']})" for row in found) + " |")
    return lines


def theory_page() -> str:
    """Return the measured contraction of wide networks."""
    found = load("theory")["ntk"]
    head = "| width | condition of K | natural gradient, a step | 1 - η | gradient descent, a step |"
    lines = [head, "|---" * 5 + "|"]
    for row in [*found["widths"], *found["lengths"], *found["angles"][1:]]:
        lines.append(
            f"| {row['width']:,} | {row['condition']:.1e} | {row['natural']:.4f} | {row['predicted']:.1f} |"
            f" {row['descent']:.4f} |"
        )
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {"docs/science.md": science_page, "docs/theory.md": theory_page}


def measured() -> list[Row]:
    """Return all trials in the order of the tables of problems and methods."""
    places = [list(PROBLEMS), list(METHODS)]
    return sorted(
        load("science")["trials"], key=lambda row: (places[0].index(row["problem"]), places[1].index(row["method"]))
    )


def grouped(trials: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return trials by problem and method, in order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in trials:
        found.setdefault((row["problem"], row["method"]), []).append(row)
    return found


def judged(rows: list[Row]) -> tuple[Row, list[Row]]:
    """Return the best settings of seed 0, and their trials with other seeds, or that one where there are none."""
    best = min((row for row in rows if row["seed"] == 0), key=lambda row: row["error"])
    others = [row for row in rows if row["seed"] and row["settings"] == best["settings"]]
    return best["settings"], others or [best]


def written(settings: Row) -> str:
    """Return settings as words."""
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "defaults"


def draw() -> None:
    """Draw the median seed's curve of every method, a picture a problem."""
    groups = grouped(measured())
    for problem in dict.fromkeys(problem for problem, _ in groups):
        curves = {}
        for (other, method), rows in groups.items():
            if other == problem:
                final = sorted(judged(rows)[1], key=lambda row: row["error"])
                curve = final[(len(final) - 1) // 2]["curve"]
                curves[method] = [Record(0, seconds, 0.0, error, None, 0.0) for seconds, error in curve]
        draw_errors(curves, ASSETS / f"science-{problem}.png", f"{problem}, seed of median error")


if __name__ == "__main__" and render(PAGES):
    draw()
