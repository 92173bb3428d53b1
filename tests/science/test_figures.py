"""The pages' figures are those of the committed results, and the results keep their promises."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest

from ..scripts import benchmark

ROOT = Path(__file__).parents[2]
RENDERED = benchmark("rendered")
PAGES = ("docs/science.md", "docs/theory.md")
REACHED = {"poisson-2d": 5e-5, "burgers": 1e-3}  # by the natural gradient, median relative L2 error
AHEAD = {"adam": 30.0, "soap": 30.0, "lbfgs": 1.0}  # how many times larger the other methods' errors are at least


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return benchmark("science_figures")


def errors(figures: ModuleType, problem: str, method: str) -> list[float]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = figures.grouped(RENDERED.load("science")["trials"])
    return [row["error"] for row in figures.judged(groups[problem, method])[1]]


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_the_committed_results(figures: ModuleType, page: str) -> None:
    assert set(figures.PAGES) == set(PAGES)
    assert RENDERED.section((ROOT / page).read_text()) == figures.PAGES[page]()


@pytest.mark.parametrize("problem", REACHED)
def test_natural_gradient_reaches_its_error(figures: ModuleType, problem: str) -> None:
    assert median(errors(figures, problem, "natural")) <= REACHED[problem]


@pytest.mark.parametrize("problem", REACHED)
@pytest.mark.parametrize("method", AHEAD)
def test_natural_gradient_is_ahead_at_equal_seconds(figures: ModuleType, method: str, problem: str) -> None:
    ours, theirs = (errors(figures, problem, name) for name in ("natural", method))
    assert len(ours) == len(theirs) == 5
    assert AHEAD[method] * median(ours) < median(theirs)


@pytest.mark.parametrize("problem", ["heat", "burgers", "helmholtz", "inverse-poisson", "poisson-5d"])
def test_natural_gradient_is_ahead_on_every_equation(figures: ModuleType, problem: str) -> None:
    ours = median(errors(figures, problem, "natural"))
    groups = figures.grouped(RENDERED.load("science")["trials"])
    others = [method for name, method in groups if name == problem and method != "natural"]
    assert set(others) == set(AHEAD)
    assert all(2 * ours < median(errors(figures, problem, method)) for method in others)


def test_trials_had_equal_budgets(figures: ModuleType) -> None:
    for (problem, _), rows in figures.grouped(RENDERED.load("science")["trials"]).items():
        assert len({row["budget"] for row in rows}) == 1
        assert all(row["budget"] <= row["seconds"] <= 1.25 * row["budget"] for row in rows), problem


def test_theory_keeps_its_promises() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "theory.json").read_text())
    assert sum(row["violations"] for row in found["sketches"]["rows"]) == 0
    assert found["stationarity"]["largest_ratio"] <= 1
    assert found["stationarity"]["order"] <= found["stationarity"]["predicted_order"]
    assert all(abs(row["natural"] - 0.5) < 0.01 for row in found["ntk"]["lengths"])
    assert all(row["natural"] <= row["predicted"] for row in found["ntk"]["ranks"])
