"""The ranks' runs, made once for all tests and all processes that run them."""

from __future__ import annotations

import fcntl
import os
import pickle
from pathlib import Path

import pytest

from .harness import Job, Outcome, run

LAWS = {
    1: Job(1, ("scenarios.exact", "scenarios.averaged", "scenarios.some_samples")),
    2: Job(
        2,
        (
            "scenarios.exact", "scenarios.averaged", "scenarios.replicas", "scenarios.rounding", "scenarios.branches",
            "scenarios.every_layer", "scenarios.some_samples",
            "scenarios.plans_change", "scenarios.cleared_on_one",
            "traffic.traffic", "traffic.memory", "traffic.automatic", "traffic.foretold", "states.resumed",
            "states.moved", "faults.spoiled", "faults.one_fails", "faults.first_batch_too_small", "faults.mismatched",
        ),
    ),
    3: Job(3, ("scenarios.few_exact", "scenarios.averaged", "traffic.memory")),
    4: Job(4, ("scenarios.exact", "scenarios.averaged", "scenarios.some_samples", "traffic.traffic", "traffic.memory")),
}  # fmt: skip
CUTS = {
    "1": Job(1, ("whole.cut_few",)),
    "2": Job(2, ("whole.cut_exact", "whole.cut_few", "whole.cut_local")),
    "2, more": Job(2, ("whole.cut_traffic", "whole.cut_training", "whole.cut_refused")),
    "3": Job(3, ("whole.cut_few",)),
}
MOVES = {  # one after the other, in one folder
    "saved by 1": Job(1, ("moves.saving",)),
    "saved by 2": Job(2, ("moves.saving",)),
    "loaded by 1": Job(1, ("moves.loading",)),
    "loaded by 2": Job(2, ("moves.loading", "moves.crossing", "moves.damaged")),
    "loaded by 3": Job(3, ("moves.loading",)),
}
RESUMES = {  # one after the other, in one folder
    "2": Job(2, ("resumes.loaded", "resumes.loaded_in_place", "resumes.disagreeing", "resumes.kept")),
    "3": Job(3, ("resumes.loaded", "resumes.kept")),
    "1, taken": Job(1, ("resumes.kept", "resumes.taken")),
    "2, taken": Job(2, ("resumes.taken",)),
    "3, taken": Job(3, ("resumes.taken",)),
    "2, groups": Job(2, ("resumes.late", "resumes.wrapped_later", "resumes.changed")),
    "left": Job(3, ("resumes.left",), timeout=600.0),  # nobody may wait for that long
}
FAULTS = {"killed": Job(3, ("faults.killed",), timeout=20.0), "absent": Job(2, ("faults.absent",), timeout=2.0)}


def _once(factory: pytest.TempPathFactory, name: str, jobs: list[Job]) -> list[Outcome]:
    """Run jobs in the first test process that asks; the others wait for what it found."""
    folder = factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    found = folder / f"{name}.pickle"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            runs = Path(folder / f"{name}-ranks")
            runs.mkdir(exist_ok=True)
            found.write_bytes(pickle.dumps([vars(outcome) for outcome in run(runs, jobs)]))
        return [Outcome(**values) for values in pickle.loads(found.read_bytes())]


def _cuts_and_moves(factory: pytest.TempPathFactory) -> list[Outcome]:
    """Run both from one process, which takes seconds to start."""
    return _once(factory, "cuts", [*CUTS.values(), *MOVES.values()])


@pytest.fixture(scope="session")
def laws(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    """What 1, 2, 3 and 4 ranks computed."""
    return dict(zip(LAWS, _once(tmp_path_factory, "laws", list(LAWS.values())), strict=True))


@pytest.fixture(scope="session")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What 1, 2 and 3 ranks computed that share a model."""
    return dict(zip(CUTS, _cuts_and_moves(tmp_path_factory)[: len(CUTS)], strict=True))


@pytest.fixture(scope="session")
def moves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What ranks saved, and others took up."""
    return dict(zip(MOVES, _cuts_and_moves(tmp_path_factory)[len(CUTS) :], strict=True))


@pytest.fixture(scope="session")
def resumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What ranks did after they had loaded states, or their process groups had changed."""
    return dict(zip(RESUMES, _once(tmp_path_factory, "resumes", list(RESUMES.values())), strict=True))


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What became of the others where a rank was lost."""
    return dict(zip(FAULTS, _once(tmp_path_factory, "faults", list(FAULTS.values())), strict=True))
