"""The file of trials is whole whatever happened to the process that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.apps.bench import Lines
from seng.apps.bench.errors import BenchError


def line(number: int = 0, stage: str = "tuning", seed: int = 100, settings: str = "abc", **more: Any) -> dict[str, Any]:
    """A made-up trial."""
    identity = {
        "protocol": "full", "workload": "digits", "budget": "steps", "amount": 10, "optimizer": "sgd", "stage": stage,
        "number": number, "seed": seed, "values": {"lr": 0.1}, "settings": settings,
    }  # fmt: skip
    return identity | {"ended": "budget", "loss": 1.0, "curve": [], **more}


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for number in range(3):
        Lines(path).add(line(number))
    assert list(Lines(path)) == [line(number) for number in range(3)]
    assert len(path.read_text().splitlines()) == 3


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 200))
def test_line_cut_by_a_kill_is_removed_and_the_rest_kept(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "trials.jsonl"
    whole, last = json.dumps(line(0)) + "\n", json.dumps(line(1))
    path.write_text(whole + last[: min(cut, len(last))])
    assert list(Lines(path)) == [line(0)]
    assert path.read_text() == whole


def test_trial_is_found_by_its_identity_alone(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "trials.jsonl")
    lines.add(line(0, loss=3.0))
    assert lines.find(line(0, loss=0.0)) == line(0, loss=3.0)
    assert lines.find(line(1)) is None
    assert lines.find(line(0, settings="other")) is None


def test_run_with_other_values_replaces_the_one_before(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "trials.jsonl")
    lines.add(line(3, "evaluation", seed=0))
    lines.add(line(5, "evaluation", seed=0, settings="new"))
    assert list(Lines(lines.path)) == [line(5, "evaluation", seed=0, settings="new")]


@pytest.mark.parametrize("damage", ["{}", "[1]", "no JSON", "3", '{"protocol": "full"}'])
def test_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps(line()) + "\n" + damage + "\n")
    with pytest.raises(BenchError, match=r"line 2 of .*trials.jsonl is no trial"):
        Lines(path)
