"""The pages' figures are those of the committed results, and the results keep their promises."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest

from ..scripts import benchmark

ROOT = Path(__file__).parents[2]
RENDERED = benchmark("rendered")
PAGES = ("docs/integrations.md", "docs/func.md")
AHEAD = {  # how many times larger the error of Adam and L-BFGS is at least
    "deepxde": {"helmholtz": 100, "inverse-diffusion": 1000},
    "pina": {"poisson": 100, "helmholtz": 1000, "diffusion-reaction": 10},
}


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return benchmark("integrations_figures")


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_the_committed_results(figures: ModuleType, page: str) -> None:
    assert set(figures.PAGES) == set(PAGES)
    assert RENDERED.section((ROOT / page).read_text()) == figures.PAGES[page]()


@pytest.mark.parametrize("library", AHEAD)
def test_natural_gradient_is_ahead_in_equal_seconds(figures: ModuleType, library: str) -> None:
    found = RENDERED.load(f"integrations-{library}")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = figures.grouped(found["runs"], "problem", "method")
    errors = {key: median(row["error"] for row in rows) for key, rows in groups.items()}
    for problem, ahead in AHEAD[library].items():
        assert errors[problem, "adam, l-bfgs"] >= ahead * errors[problem, "natural"]
    for rows in groups.values():
        assert all(row["seconds"] <= 1.25 * found["budget"] for row in rows)


def test_number_of_points_that_is_found_is_never_far_from_the_best(figures: ModuleType) -> None:
    groups = figures.grouped(RENDERED.load("fit_points")["runs"], "problem", "size")
    errors = {key: median(row["error"] for row in rows) for key, rows in groups.items()}
    problems, sizes = {problem for problem, _ in errors}, {size for _, size in errors} - {"auto"}
    assert sizes == {100, 300, 1000}
    best = {problem: min(errors[problem, size] for size in sizes) for problem in problems}
    assert all(errors[problem, "auto"] < 5 * best[problem] for problem in problems)
    for size in sizes:  # while each fixed number is, on some problem
        assert max(errors[problem, size] / errors[problem, "auto"] for problem in problems) > 10
