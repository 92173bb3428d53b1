"""Several ranks compute what one process computes with the samples of all."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

import seng
from seng.errors import BatchError, OptionError
from seng.func import RANKS, natural_gradient
from seng.func.ranks import Ranks, ranks_for

from . import worker
from .worker import CASES, STEPS

EXACT = 1e-9  # float64, sums in the order of the ranks, systems of condition up to 1e5
LOOSE = 1e-5  # the Nystrom solution stops at a relative residual of 1e-6
HANG = 240  # seconds after which the ranks are taken to wait for each other for ever
WORLDS = [pytest.param(3), *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))]  # three say the most

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
each_mode = pytest.mark.parametrize("mode", ["joined", "dealt"])


def start(world: int, folder: Path) -> list[subprocess.Popen[str]]:
    path = os.pathsep.join([str(Path(seng.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(k), str(world), str(folder / "store"), str(folder / f"{k}.pt")],
            env={**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(world)
    ]


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    started = start(world, folder)
    try:
        said = [process.communicate(timeout=HANG)[0] for process in started]
    except subprocess.TimeoutExpired:
        pytest.fail(f"{world} ranks did not finish in {HANG} s: a collective call is missing on one of them")
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * world, "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return worker.scenarios(0, 1, "none")


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool(torch.linalg.norm(got - expected) <= tolerance * torch.linalg.norm(expected))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("nystrom", "gaussian", "sampled")])
@each_mode
def test_ranks_find_the_direction_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], case: str, mode: str
) -> None:
    for rank in ranks:
        got = rank[mode][case]
        assert close(got["d"], alone[case]["d"], EXACT)
        assert got["loss"] == pytest.approx(alone[case]["loss"], rel=EXACT)
        assert got["trace"] == pytest.approx(alone[case]["trace"], rel=EXACT)
        assert got["error"] < EXACT


@each_mode
def test_sketches_are_refined_to_the_same_direction(
    ranks: list[dict[str, Any]], alone: dict[str, Any], mode: str
) -> None:
    for rank in ranks:
        assert close(rank[mode]["nystrom"]["d"], alone["exact"]["d"], LOOSE)


@each_mode
@pytest.mark.parametrize("case", ["gaussian", "sampled"])
def test_random_directions_are_the_same_where_rows_keep_their_order(
    ranks: list[dict[str, Any]], alone: dict[str, Any], mode: str, case: str
) -> None:
    got = [rank[mode][case] for rank in ranks]
    assert all(torch.equal(g["d"], got[0]["d"]) for g in got)
    if len(ranks) == 1 or case == "sampled":
        assert close(got[0]["d"], alone[case]["d"], EXACT)


@each_mode
def test_runs_stay_bit_equal_and_take_the_steps_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], mode: str
) -> None:
    runs = [rank[mode]["run"] for rank in ranks]
    assert all(torch.equal(one["w"], runs[0]["w"]) for one in runs)
    assert all(one["lengths"] == alone["run"]["lengths"] for one in runs)
    assert close(runs[0]["w"], alone["run"]["w"], EXACT)
    assert runs[0]["losses"] == pytest.approx(alone["run"]["losses"], rel=EXACT)
    assert len(runs[0]["lengths"]) == STEPS


def test_bad_batch_on_one_rank_is_skipped_on_all(ranks: list[dict[str, Any]]) -> None:
    before = worker.flat(worker.network().parameters())
    for rank in ranks:
        assert rank["joined"]["spoiled"]["accepted"] is False
        assert rank["joined"]["spoiled"]["skipped"] == 1
        assert torch.equal(rank["joined"]["spoiled"]["w"], before)


def test_unsolvable_systems_are_refused_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert all("no output depends on a parameter" in rank["joined"]["singular"] for rank in ranks)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, so that the collective code runs here."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=HANG))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("mode", RANKS)
def test_one_rank_changes_nothing(mode: str, alone: dict[str, Any]) -> None:
    seen = worker.scenarios(0, 1, mode)
    assert torch.equal(seen["exact"]["d"], alone["exact"]["d"])
    assert torch.equal(seen["run"]["w"], alone["run"]["w"])


def test_one_process_works_alone_by_itself() -> None:
    assert ranks_for("auto", "test").world == 1


@pytest.mark.usefixtures("one_process")
def test_samples_are_dealt_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        shares += list(range(10))[Ranks(rank, 3, dealt=True).share(10)]
    assert shares == list(range(10))
    assert Ranks(1, 3).share(10) == slice(0, 10)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("count", "per_sample"), [(1, True), (4, False)])
def test_samples_that_cannot_be_dealt_are_refused(
    monkeypatch: pytest.MonkeyPatch, count: int, per_sample: bool
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(BatchError, match="cannot be dealt: expected per_sample=True and >= 2 samples"):
        natural_gradient(
            lambda w, x: w.sum() * x, torch.ones(2), torch.ones(count), distributed="dealt", per_sample=per_sample
        )


@pytest.mark.parametrize("mode", ["joined", "dealt"])
def test_ranks_need_a_process_group(mode: str) -> None:
    with pytest.raises(OptionError, match="no process group"):
        natural_gradient(lambda w, x: w.sum() * x, torch.ones(2), torch.ones(3), distributed=mode)
