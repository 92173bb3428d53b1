"""The README's figures are those of the committed results, and the results keep their promises."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_readme_shows_the_committed_results() -> None:
    module = figures()
    assert module.section((ROOT / "README.md").read_text()) == module.render()


@pytest.mark.parametrize("name", ["step_cost", "training"])
def test_results_name_their_environment(name: str) -> None:
    assert {"date", "torch", "processor", "threads"} <= set(result(name)["environment"])


def test_recipes_reach_their_accuracies() -> None:
    training = result("training")
    assert len(training["digits"]) == 5
    assert min(row["test_accuracy"] for row in training["digits"]) >= 0.97
    assert min(row["test_accuracy"] for row in training["fashion-resnet"]) >= 0.88


def test_autoencoder_does_not_diverge_under_held_curvature() -> None:
    rows = [row for row in result("training")["autoencoder"] if "every 4" in row["optimizer"]]
    from_xavier = [row for row in rows if row["initial"] == "xavier" and row["decay"] == "none"]
    assert len(from_xavier) == 3
    assert all(row["test_loss"] < row["first_loss"] / 2 for row in from_xavier)
    assert all(row["largest_loss"] < 2 * row["first_loss"] for row in from_xavier)
