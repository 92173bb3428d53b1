"""The README's figures are those of the committed results, and the results keep their promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .scripts import benchmark

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES, RENDERED = benchmark("figures"), benchmark("rendered")


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("page", FIGURES.PAGES)
def test_page_shows_the_committed_results(page: str) -> None:
    assert RENDERED.section((ROOT / page).read_text()) == FIGURES.PAGES[page]()


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_results_name_their_environment(name: str) -> None:
    assert {"date", "torch", "processor", "threads"} <= set(result(name)["environment"])


def reached(recipe: str, optimizer: str, key: str) -> list[float]:
    """Last values of a recipe's runs, one a seed."""
    rows = [row for row in result("recipes")[recipe] if row["optimizer"] == optimizer]
    return [row["epochs"][-1][key] for row in rows]


def test_recipes_reach_their_accuracies() -> None:
    assert len(reached("digits", "seng", "test_accuracy")) == 5
    assert min(reached("digits", "seng", "test_accuracy")) >= 0.97
    assert min(row["test_accuracy"] for row in result("training")["fashion-resnet"]) >= 0.88
    assert max(reached("fashion-autoencoder", "seng", "test_loss")) <= 7.2
    assert result("recipe_cost")["fashion-autoencoder"]["seng"]["ratio"] <= 1.8  # steps of SGD's


@pytest.mark.parametrize("recipe", ["digits", "fashion-autoencoder", "fashion-resnet", "char-gpt"])
def test_recipes_are_compared_on_equal_terms(recipe: str) -> None:
    rows = result("recipes")[recipe]
    seen = {name: {row["seed"] for row in rows if row["optimizer"] == name} for name in ("seng", "sgd", "adamw")}
    assert seen["seng"] == seen["sgd"] == seen["adamw"]
    assert len({row["epochs"][-1]["step"] for row in rows}) == 1


def test_autoencoder_does_not_diverge_under_held_curvature() -> None:
    rows = [row for row in result("training")["autoencoder"] if "every 4" in row["optimizer"]]
    from_xavier = [row for row in rows if row["initial"] == "xavier" and row["decay"] == "none"]
    assert len(from_xavier) == 3
    assert all(row["test_loss"] < row["first_loss"] / 2 for row in from_xavier)
    assert all(row["largest_loss"] < 2 * row["first_loss"] for row in from_xavier)


def test_weak_scaling_of_local_is_that_of_plain_training() -> None:
    found = [
        task["weak_scaling"] for task in RENDERED.load("ranks").values() if isinstance(task, dict) and "model" in task
    ]
    assert len(found) == 2
    assert all(task["local"]["of_plain"] >= 0.97 for task in found)
