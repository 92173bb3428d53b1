"""Strategies without other ranks: the table, one process, and a process group of one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from seng import Preconditioner, curvature
from seng.curvature import Solution
from seng.distributed import STRATEGIES, Batch, Global, Local, Sharded, Strategy, several_ranks
from seng.errors import ModelError, OptionError
from seng.refreshing import solutions
from seng.solve import FactorisationError

HANG = 60  # seconds after which a collective call gives up
EXACT = 1e-12  # float64, the same numbers in another order

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, so that strategies run here."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=HANG))
    yield
    dist.destroy_process_group()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 8)), nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 4), nn.LayerNorm(4)
    ).double()


def directions(strategy: str, **options: Any) -> list[Tensor]:
    model, seen = network(), []
    pre = Preconditioner(model, distributed=strategy, refresh_every=2, **options)  # type: ignore[arg-type]
    for step in range(4):
        model.zero_grad()
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).pow(3).sum(1).mean().backward()
        assert pre.step()
        seen.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))  # type: ignore[union-attr]
    pre.close()
    return seen


OPTIONS: list[dict[str, Any]] = [
    {}, {"power": 1.0}, {"ema": 0.5}, {"estimator": "truncated"}, {"power": 1.0, "curvature_batch": "current"},
    {"estimator": "implicit", "rank": 2, "sketch_size": 100},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_strategy_of_one_rank_is_the_run_without(name: str, options: dict[str, Any], one_process: None) -> None:
    for got, expected in zip(directions(name, **options), directions("none", **options), strict=True):
        torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)


def test_one_process_uses_none_by_itself() -> None:
    assert not several_ranks()
    assert type(Preconditioner(network()).strategy) is Strategy


@pytest.mark.parametrize("name", [name for name, kind in STRATEGIES.items() if kind.several])
def test_strategy_of_one_rank_changes_nothing(name: str, one_process: None) -> None:
    strategy = STRATEGIES[name]()
    gradients = {"a": [torch.arange(6.0).view(2, 3).mT, torch.tensor(3.0)], "b": [torch.ones(2).double()]}
    before = {block: [x.clone() for x in own] for block, own in gradients.items()}
    strategy.plan = replace(strategy.plan, owners={"a": 0, "b": 0}, apart=frozenset("ab"))
    updates = strategy.updates(gradients)
    for block in gradients:
        updates.ready(block, written=True)
    updates.finish({"a": 1, "b": 1})
    for block, own in gradients.items():
        assert all(torch.equal(p, q) for p, q in zip(own, before[block], strict=True))
    strategy.close()


@pytest.mark.parametrize("name", STRATEGIES)
def test_together_asks_whether_a_step_is_good(name: str, one_process: None) -> None:
    strategy = STRATEGIES[name]()
    for good in (True, False):
        value, agreed = strategy.together(lambda good=good: ("brought", Batch(torch.tensor(good), dict)))
        assert (value, agreed()) == ("brought", good)
    with pytest.raises(OptionError, match="expected this"):
        strategy.together(_fail)
    strategy.close()


def _fail() -> tuple[str, Batch]:
    raise OptionError("call", "problem", expected="this", got=None, fix="Do that")


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_strategies_need_a_process_group_at_the_first_step(name: str) -> None:
    model = network()
    pre = Preconditioner(model, distributed=name)  # type: ignore[arg-type]
    model(torch.randn(6, 16, dtype=torch.float64)).pow(3).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    with pytest.raises(OptionError, match=rf"step\(\): distributed='{name}' needs ranks: expected a process group"):
        pre.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))  # type: ignore[arg-type]
    pre.close()


def test_table_names_the_strategies() -> None:
    assert {"none": Strategy, "local": Local, "global": Global, "sharded": Sharded} == STRATEGIES


@pytest.mark.parametrize(("given", "closest"), [("locale", "local"), ("globe", "global"), ("zzz", None)])
def test_unknown_strategy_is_refused(given: str, closest: str | None) -> None:
    fix = f"Did you mean '{closest}'" if closest else "Choose one of the names listed"
    names = r"'auto' \| 'none' \| 'local' \| 'global' \| 'sharded'"
    with pytest.raises(OptionError, match=rf"unknown distributed: expected {names}, got '{given}'\. {fix}\."):
        Preconditioner(network(), distributed=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_state_holds_no_more_than_its_tensors(name: str, one_process: None) -> None:
    """Ids and floats arrive in one buffer; torch saves what is behind a view, and refuses views of two dtypes."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    pre = Preconditioner(model, distributed=name)  # type: ignore[arg-type]
    model(torch.randint(5, (4, 2))).pow(2).sum(1).mean().backward()
    pre.step()
    state, file = pre.state_dict(), BytesIO()
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in _tensors(state))
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for x, y in zip(_tensors(state), _tensors(loaded), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    pre.close()


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return [x for item in items for x in _tensors(item)]


def _never(*args: Any) -> Solution:
    raise FactorisationError("no rung held")


@pytest.mark.parametrize("name", ["global", "sharded"])
def test_failed_factorisation_keeps_the_last_curvature(
    name: str, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    pre = Preconditioner(model, distributed=name, refresh_every=1)  # type: ignore[arg-type]
    for step in range(2):
        model.zero_grad()
        model(torch.randn(6, 16, dtype=torch.float64)).pow(3).sum(1).mean().backward()
        if step == 1:
            monkeypatch.setattr(solutions if name == "global" else curvature, "solve", _never)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert pre.step()
    assert pre.counters["failed_refreshes"] == 3
    assert [own.refresh_age for own in pre.stats().values()] == [1, 1, 1]
    pre.close()


def test_parameters_that_wait_on_another_device_are_refused(one_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CPUOffloadPolicy they are on the CPU and their mesh is of GPUs; here the mesh of a real one says so."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    model = network()
    fsdp.fully_shard(model)
    Preconditioner(model, distributed="local").close()
    monkeypatch.setattr(DeviceMesh, "device_type", property(lambda mesh: "cuda"))
    with pytest.raises(ModelError, match=r"expected parameters on cuda, got 'cpu'.*Leave out CPUOffloadPolicy"):
        Preconditioner(model, distributed="local")
