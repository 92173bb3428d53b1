"""The loop: budgets, records, draws of points, and the folder it fills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from seng import func
from seng.apps.science import PROBLEMS, Points, Problem, Record, run
from seng.apps.science.folder import Folder
from seng.apps.science.methods import Method, Natural, Step, Taken
from seng.apps.science.pictures import draw_errors, draw_fit, draw_solution
from seng.apps.science.run import RECORDS
from seng.errors import OptionError

PNG = b"\x89PNG\r\n\x1a\n"


class Counting(Method):
    """Takes no step, and remembers the points it was given."""

    def start(self, problem: Problem, net: nn.Module, seed: int) -> Step:
        self.seen: list[Points] = []
        self.shares: list[float] = []

        def step(points: Points, spent: float) -> Taken:
            self.seen.append(points)
            self.shares.append(spent)
            return Taken(1.0, None, 0.5)

        object.__setattr__(self, "step", step)
        return step

    def __setattr__(self, name: str, value: object) -> None:  # frozen otherwise
        object.__setattr__(self, name, value)


def ticking(seconds: float) -> Iterator[float]:
    """A clock on which every step takes so long: it is read before and after each."""
    return (seconds * (k // 2 + k % 2) for k in count())


def counted(every: int, seconds: float, budget: float) -> tuple[Counting, list[Record]]:
    problem, method = PROBLEMS["poisson-2d"](), Counting(every=every)
    clock = ticking(seconds)
    return method, list(run(problem, method, problem.network(0), budget, clock=lambda: next(clock)))


def test_run_ends_with_the_step_that_overdraws_the_budget() -> None:
    method, records = counted(0, 0.4, 1.0)
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.seconds for record in records] == pytest.approx([0.4, 0.8, 1.2])
    assert method.shares == pytest.approx([0.0, 0.4, 0.8])


def test_short_steps_are_recorded_evenly() -> None:
    _, records = counted(0, 0.001, 1.0)
    assert RECORDS <= len(records) <= RECORDS + 2
    assert records[0].step == 1
    assert records[-1].step in (1000, 1001)
    assert records[-1].seconds >= 1.0 - 1e-9


@pytest.mark.parametrize(("every", "draws"), [(0, 1), (1, 10), (4, 3)])
def test_points_are_drawn_as_often_as_asked(every: int, draws: int) -> None:
    method, _ = counted(every, 0.1001, 1.0)
    assert len(method.seen) == 10
    assert len({id(points) for points in method.seen}) == draws


def test_run_is_the_same_for_equal_seeds() -> None:
    problem = small()
    errors = []
    for seed in (0, 0, 1):
        clock = ticking(1.0)
        net = problem.network(seed)
        errors.append([r.error for r in run(problem, Natural(every=2), net, 5.0, seed, clock=lambda: next(clock))])  # noqa: B023
    assert errors[0] == errors[1] != errors[2]


def small() -> Problem:
    problem = PROBLEMS["poisson-2d"]()
    draw = problem.draw
    return replace(
        problem, sizes=(2, 8, 1), draw=lambda g: {term: x[::10] for term, x in draw(g).items()}
    )  # fmt: skip


# -- folder and pictures --------------------------------------------------------------------------------------------

RECORD = Record(3, 1.5, 0.25, 0.125, None, 1e-3)


def test_folder_gives_records_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new", "heat")
    assert list(folder.write("adam", {"seed": 4}, [RECORD, RECORD])) == [RECORD, RECORD]
    lines = [json.loads(line) for line in (tmp_path / "new" / "adam.jsonl").read_text().splitlines()]
    assert lines == [{"problem": "heat", "method": "adam", "seed": 4}, asdict(RECORD), asdict(RECORD)]
    assert Folder(tmp_path / "new", "heat").runs() == {"adam": [RECORD, RECORD]}


def test_folder_of_another_problem_is_refused(tmp_path: Path) -> None:
    list(Folder(tmp_path, "heat").write("adam", {}, [RECORD]))
    with pytest.raises(OptionError, match="--out holds another problem: expected burgers, got 'heat'"):
        Folder(tmp_path, "burgers")


def test_runs_are_not_replaced_unasked(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "heat")
    list(folder.write("adam", {}, [RECORD]))
    folder.require_room("soap")
    with pytest.raises(OptionError, match="--out holds a run of adam.*Pass --overwrite"):
        folder.require_room("adam")
    Folder(tmp_path, "heat", overwrite=True).require_room("adam")


@pytest.mark.parametrize(
    "line", ["", "{", "7", "[" * 100_000, '{"step": 1}', json.dumps(asdict(RECORD) | {"step": "x"}), "\0\xff"]
)
def test_damaged_lines_of_a_run_are_passed_over(tmp_path: Path, line: str) -> None:
    folder = Folder(tmp_path, "heat")
    list(folder.write("adam", {}, [RECORD, RECORD]))
    lines = (tmp_path / "adam.jsonl").read_text().splitlines()
    (tmp_path / "adam.jsonl").write_text("\n".join([*lines[:2], line, lines[2]]) + "\n")
    assert folder.runs() == {"adam": [RECORD, RECORD]}
    (tmp_path / "adam.jsonl").write_text(line + "\n" + lines[1])
    assert folder.runs() == {}


def test_run_that_was_cut_off_has_the_records_it_made(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "heat")
    writing = folder.write("adam", {}, iter([RECORD, RECORD]))
    next(writing)
    assert folder.runs() == {"adam": [RECORD]}
    (tmp_path / "soap.jsonl").write_text(json.dumps({"problem": "heat", "method": "soap"}) + "\n")
    assert folder.runs() == {"adam": [RECORD]}


@pytest.mark.parametrize("name", ["poisson-5d", "diabetes"])
def test_pictures_are_drawn_with_and_without_a_view(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]()
    draw_solution(problem, problem.network(0), tmp_path / "solution.png", name)
    draw_errors({"natural": [RECORD, RECORD], "adam": [RECORD]}, tmp_path / "errors.png", name)
    for picture in tmp_path.iterdir():
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size > 5_000


@pytest.mark.parametrize("held_out", [None, 2e-3])
def test_history_of_a_fit_is_drawn(held_out: float | None, tmp_path: Path) -> None:
    records = [func.Record(k, 0.1 * k, 1e-3 / k, held_out, 64 * k, 1, 0.1, 1.0) for k in (1, 2, 3)]
    draw_fit(func.Fit("steps", 1e-3, held_out, 64, records), tmp_path / "fit.png", "a fit")
    assert (tmp_path / "fit.png").read_bytes().startswith(PNG)
    assert (tmp_path / "fit.png").stat().st_size > 5_000


def test_error_map_is_zero_for_the_solution(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problem, shown = PROBLEMS["heat"](), []
    monkeypatch.setattr("seng.apps.science.pictures._map", lambda *arguments: shown.append(arguments[2]))
    exact = torch.func.vmap(torch.func.vmap(problem.solution))  # type: ignore[arg-type]
    monkeypatch.setattr(type(problem), "values", lambda self, net, points: exact(points)[..., 0])
    draw_solution(problem, problem.network(0), tmp_path / "picture.png", "heat")
    network, true, difference = shown
    assert float(difference.abs().max()) < 1e-14
    torch.testing.assert_close(network, true)
    assert float(true[0, 50]) == pytest.approx(0.5)  # row 0 is time 0: sin(π/2) + sin(3π/2)/2
