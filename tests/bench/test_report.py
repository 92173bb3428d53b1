"""The report shows what the lines say, misses and divergence included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seng.apps.bench.report import markdown, write_report
from seng.apps.bench.summary import Cell, Row, summarise

PLACE = {"date": "2026-11-28", "torch": "2.13.0", "processor": "made up", "threads": 1}


def line(optimizer: str, stage: str, seed: int, losses: list[float], **changes: Any) -> dict[str, Any]:
    """A made-up trial that ends at the last of some losses, ten steps and two seconds apart."""
    curve = [[10 * (k + 1), 2.0 * (k + 1), loss, 1 - loss] for k, loss in enumerate(losses)]
    return {
        "protocol": "full", "workload": "digits", "budget": "steps", "amount": 30, "optimizer": optimizer,
        "stage": stage, "number": 0, "seed": seed, "values": {"lr": 0.1}, "first_order": optimizer in ("sgd", "adamw"),
        "target_accuracy": None, "settings": "abc", "ended": "budget", "first": 9.0, "loss": losses[-1],
        "accuracy": 1 - losses[-1], "steps": 30, "seconds": 6.0, "steps_per_epoch": 5, "curve": curve, "error": "",
        "environment": PLACE,
    } | changes  # fmt: skip


LINES = [
    line("sgd", "tuning", 100, [0.9]),
    line("sgd", "tuning", 100, [0.9], number=1, ended="diverged"),
    *(line("sgd", "evaluation", seed, [0.9, 0.8, 0.6]) for seed in range(3)),
    *(line("adamw", "evaluation", seed, [0.7, 0.6, loss]) for seed, loss in enumerate([0.4, 0.5, 0.45])),
    *(line("seng", "evaluation", seed, [0.45, 0.4, 0.36]) for seed in range(3)),
    *(line("slow", "evaluation", seed, [0.9, 0.8, loss]) for seed, loss in enumerate([0.44, 0.6, 0.7])),
    line("wild", "evaluation", 0, [0.9, 0.8, 0.7]),
    *(line("wild", "evaluation", seed, [0.9], ended="diverged") for seed in (1, 2)),
    line("broken", "tuning", 100, [0.9], ended="failed", error="RuntimeError: no | memory"),
]


@pytest.fixture
def cell() -> Cell:
    (found,) = summarise(LINES)
    return found


def row(cell: Cell, optimizer: str) -> Row:
    return next(row for row in cell.rows if row.optimizer == optimizer)


def test_target_is_the_best_first_order_median(cell: Cell) -> None:
    assert cell.target == 0.45
    assert not cell.of_accuracy
    assert row(cell, "adamw").ratio == 1.0
    assert row(cell, "seng").ratio == pytest.approx(0.8)
    low, high = row(cell, "seng").interval or (0.0, 0.0)
    assert low <= 0.8 <= high


def test_reaching_the_target_is_counted_and_timed(cell: Cell) -> None:
    assert (row(cell, "seng").reached, row(cell, "seng").to_target) == (3, (10, 2, 2.0))
    assert row(cell, "adamw").reached == 2
    assert row(cell, "slow").reached == 1
    assert row(cell, "slow").to_target[0] == float("inf")


def test_diverged_runs_are_infinite_losses_and_no_ratio(cell: Cell) -> None:
    assert row(cell, "wild").loss == float("inf")
    assert row(cell, "wild").ratio is None
    assert row(cell, "sgd").lost == 1
    assert cell.rows[0].optimizer == "seng"


def test_target_accuracy_is_the_workloads(cell: Cell) -> None:
    (found,) = summarise([each | {"target_accuracy": 0.6} for each in LINES])
    assert (found.target, found.of_accuracy) == (0.6, True)
    assert row(found, "seng").to_target == (20, 4, 4.0)


def test_no_first_order_method_no_target() -> None:
    (found,) = summarise([each for each in LINES if not each["first_order"]])
    assert found.target is None
    assert {each.ratio for each in found.rows} == {None}
    assert "there is no target" in markdown([found], LINES)


def test_equal_seconds_come_first() -> None:
    found = summarise([*LINES, *(each | {"budget": "seconds"} for each in LINES)])
    assert [each.budget for each in found] == ["seconds", "steps"]
    text = markdown(found, LINES)
    assert text.index("## Equal CPU seconds") < text.index("## Equal steps")


def test_report_is_made_of_the_lines_alone(tmp_path: Path) -> None:
    others = [each | {"protocol": "quick", "loss": 0.0} for each in LINES]
    texts = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        page, numbers = write_report([*LINES, *others], tmp_path / place, "full")
        texts.append(page.read_text() + numbers.read_text())
    assert texts[0] == texts[1]
    text = page.read_text()
    assert "| seng | lr 0.1 | 0.36 | 0.8 [" in text
    assert "1 of 3 | — | — | — |" in text
    assert "no \\| memory" in text
    assert f"{len(LINES)} trials" in text
    found = json.loads(numbers.read_text())["cells"][0]
    wild = next(each for each in found["rows"] if each["optimizer"] == "wild")
    assert wild["losses"] == [0.7, None, None]
