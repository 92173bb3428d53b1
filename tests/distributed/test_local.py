"""The strategy "local": several ranks take the mean of the directions each would take alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

import seng
from seng import SENG, Preconditioner
from seng.distributed import STRATEGIES, Local, Strategy, automatic
from seng.errors import OptionError

from . import worker
from .worker import OPTIONS, SPOILED, STEPS, WORLD, Net, batch, loss_of, parameters

EXACT = 1e-10  # float64, sums over two ranks in another order
SINGLE = 1e-6  # the same for the one parameter in float32
HANG = 120  # seconds after which the ranks are taken to wait for each other for ever

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(Path(seng.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(rank), str(folder / "store"), str(folder / f"{rank}.pt")],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=HANG)[0] for process in started]
    except subprocess.TimeoutExpired:
        pytest.fail(f"the ranks did not finish in {HANG} s: a collective call is missing on one of them")
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, so that the strategy runs here."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=HANG))
    yield
    dist.destroy_process_group()


def mean(tensors: list[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0]) / len(tensors)


def one_by_one() -> list[list[Tensor]]:
    """Parameters after each step of the same run, ranks computed one after the other in this process."""
    models = [Net() for _ in range(WORLD)]
    alone = [
        Preconditioner(model, damping=OPTIONS["damping"], refresh_every=OPTIONS["refresh_every"]) for model in models
    ]
    bases = [
        torch.optim.SGD(model.parameters(), lr=OPTIONS["lr"], momentum=OPTIONS["momentum"], weight_decay=5e-4)
        for model in models
    ]
    seen = []
    for step in range(STEPS):
        for rank, model in enumerate(models):
            model.zero_grad()
            loss_of(model, *batch(rank, step)).backward()
        average(models)  # as DistributedDataParallel does
        for pre in alone:
            assert pre.step()
        average(models)  # as the strategy does
        for base in bases:
            base.step()
        seen.append(parameters(models[0]))
    return seen


def average(models: list[Net]) -> None:
    for same in zip(*(model.parameters() for model in models), strict=True):
        g = mean([p.grad.clone() for p in same])  # type: ignore[union-attr]
        for p in same:
            p.grad = g.clone()


def test_ranks_take_the_mean_of_their_directions(ranks: list[dict[str, Any]]) -> None:
    for got, expected in zip(ranks[0]["replicated"]["parameters"], one_by_one(), strict=True):
        for p, q in zip(got, expected, strict=True):
            tolerance = EXACT if p.dtype == torch.float64 else SINGLE
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def test_ranks_hold_different_curvature(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["replicated"]["traces"] != ranks[1]["replicated"]["traces"]


@pytest.mark.parametrize("scenario", ["replicated", "spoiled"])
def test_replicas_stay_bit_equal(ranks: list[dict[str, Any]], scenario: str) -> None:
    first, second = (rank[scenario]["parameters"] for rank in ranks)
    for here, there in zip(first, second, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(here, there, strict=True))
    assert not torch.equal(first[0][0], first[-1][0])


def test_bad_batch_on_one_rank_is_skipped_on_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        run = rank["spoiled"]
        before, after = run["parameters"][SPOILED], run["parameters"][SPOILED + 1]
        assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
        assert run["counters"]["skipped_steps"] == 1
        assert run["steps"] == STEPS - 1
        assert all(p.isfinite().all() for p in run["parameters"][-1])


def test_several_ranks_use_local_by_themselves(ranks: list[dict[str, Any]]) -> None:
    assert [rank["replicated"]["strategy"] for rank in ranks] == ["Local", "Local"]


def test_one_process_uses_none_by_itself() -> None:
    assert automatic() == "none"
    assert type(Preconditioner(Net())._strategy) is Strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_of_one_rank_changes_nothing(name: str, one_process: None) -> None:
    assert automatic() == "none"
    strategy = STRATEGIES[name]()
    updates = [torch.arange(6.0).view(2, 3).mT, torch.ones(2, dtype=torch.float64), torch.tensor(3.0)]
    before = [update.clone() for update in updates]
    strategy.share_updates(updates)
    assert all(torch.equal(p, q) for p, q in zip(updates, before, strict=True))
    assert strategy.agree(torch.tensor(True)) is True
    assert strategy.agree(torch.tensor(False)) is False


def test_local_of_one_rank_is_the_run_without(one_process: None) -> None:
    runs = []
    for name in ("local", "none"):
        model = Net()
        optimizer = SENG(model, distributed=name, **OPTIONS)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(model, *batch(0, step)).backward()
            optimizer.step()
        runs.append(parameters(model))
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def test_table_names_the_strategies() -> None:
    assert {"none": Strategy, "local": Local} == STRATEGIES


@pytest.mark.parametrize(("given", "closest"), [("locale", "local"), ("zzz", None)])
def test_unknown_strategy_is_refused(given: str, closest: str | None) -> None:
    fix = f"Did you mean '{closest}'" if closest else "Choose one of the names listed"
    with pytest.raises(
        OptionError, match=rf"unknown distributed: expected 'auto' \| 'none' \| 'local'.*, got '{given}'\. {fix}\."
    ):
        Preconditioner(Net(), distributed=given)
