"""``seng science``, as a person and as a script calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUICK = ("--seconds", "0.2")


def test_science_leaves_records_networks_and_pictures(call, tmp_path: Path):
    out = tmp_path / "runs"
    code, printed = call("science", "heat", "--out", out, "--method", "natural", "--method", "adam", *QUICK)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "adam.jsonl", "adam.pt", "errors.png", "natural.jsonl", "natural.pt", "solution-adam.png",
        "solution-natural.png",
    ]  # fmt: skip
    head, *records = [json.loads(line) for line in (out / "natural.jsonl").read_text().splitlines()]
    assert (head["problem"], head["seconds"], head["seed"], head["threads"]) == ("heat", 0.2, 0, 1)
    assert head["settings"]["every"] == 20
    assert set(records[-1]) == {"step", "seconds", "loss", "error", "damping", "length"}
    assert records[-1]["seconds"] >= 0.2
    assert f"relative error {records[-1]['error']:.2e}" in printed
    assert f"picture: {out / 'errors.png'}" in printed


def test_science_tells_scripts(call, tmp_path: Path):
    arguments = (
        "science",
        "diabetes",
        "--out",
        tmp_path,
        "--method",
        "adam",
        "--set",
        "lr=0.01",
        "--seed",
        "3",
        *QUICK,
    )
    code, printed = call(*arguments, "--json")
    assert code == 0
    told = json.loads(printed)
    assert told["problem"] == "diabetes"
    head, *records = [json.loads(line) for line in (tmp_path / "adam.jsonl").read_text().splitlines()]
    assert (head["settings"]["lr"], head["seed"]) == (0.01, 3)
    assert told["runs"]["adam"] == records[-1]
    assert all(Path(path).exists() for path in told["pictures"])
    code, printed = call(*arguments)
    assert code == 2
    assert "--out holds a run of adam" in printed
    assert call(*arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("poison-2d",), "unknown problem.*Did you mean 'poisson-2d'"),
        (("heat", "--method", "sgd"), "unknown method: expected 'natural' | 'adam' | 'soap' | 'lbfgs'"),
        (("heat", "--set", "lr=0.1"), "natural has no such setting"),
        (("heat", "--set", "damping=much"), "bad --set damping: expected a value like 0.1, got 'much'"),
        (("heat", "--set", "acceleration=maybe"), "bad --set acceleration: expected a value like True"),
        (("heat", "--set", "damping"), "bad --set"),
    ],
)
def test_science_refuses_what_it_does_not_know(call, tmp_path: Path, arguments: tuple[str, ...], problem: str):
    code, printed = call("science", *arguments, "--out", tmp_path)
    assert code == 2
    first, *rest = problem.split(".*")
    assert all(part in printed for part in (first, *rest))
    assert not list(tmp_path.glob("*.jsonl"))
