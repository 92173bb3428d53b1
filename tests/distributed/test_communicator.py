"""Collective calls, of one process and where a rank is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed as dist

from seng.distributed import Communicator
from seng.errors import RankError, StateError

CALLS: dict[str, Callable[[Communicator], Any]] = {
    "sum": lambda ranks: ranks.sum(torch.ones(2)),
    "largest": lambda ranks: ranks.largest(3),
    "agree": lambda ranks: ranks.agree(True),
    "gather": lambda ranks: ranks.gather("x"),
    "all_gather": lambda ranks: ranks.all_gather(torch.ones(2), "table"),
    "broadcast": lambda ranks: ranks.broadcast(torch.ones(2)),
    "join": lambda ranks: ranks.join(torch.ones(2, 3), [2, 2]),
    "collect": lambda ranks: ranks.collect(torch.ones(2, 3), [2, 2]),
    "agreed": lambda ranks: ranks.agreed(lambda: 3),
    "start_min": lambda ranks: ranks.start_min(torch.tensor(True), [1], "agreement"),
    "start_sum": lambda ranks: ranks.start_sum(torch.ones(2), "directions"),
    "start_broadcast": lambda ranks: ranks.start_broadcast(0, torch.ones(2), "samples"),
    "start_all_to_all": lambda ranks: ranks.start_all_to_all(torch.ones(2), [1, 1], [1, 1], "samples"),
}

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def _lost(*_: object, **__: object) -> None:
    raise RuntimeError("Connection closed by peer\nmore")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("rank", [0, 1])
def test_lost_rank_is_an_error_that_names_the_call(monkeypatch: pytest.MonkeyPatch, call: str, rank: int) -> None:
    functions = ("all_reduce", "all_gather_object", "all_gather", "broadcast", "send", "recv", "all_to_all_single")
    for name in functions:
        monkeypatch.setattr(dist, name, _lost)
    with pytest.raises(RankError, match=r"^fit\(\): the ranks cannot reach each other: .*Connection closed by peer'\."):
        CALLS[call](Communicator(rank, 2, call="fit()"))


def test_one_process_has_its_own_answers() -> None:
    alone, x = Communicator(), torch.arange(6.0).view(3, 2)
    assert alone.sum(x) is alone.broadcast(x) is alone.join(x, [3]) is alone.collect(x, [3]) is x
    assert torch.equal(alone.all_gather(x, "table"), x[None])
    assert (alone.largest(3), alone.agree(True), alone.agree(False), alone.gather("x")) == (3, True, False, ["x"])
    assert not alone.received


def test_error_inside_is_raised_as_it_is() -> None:
    error = StateError("load()", "a file is missing", expected="all files", got="none", fix="Look for it")
    with pytest.raises(StateError, match="a file is missing") as raised:
        Communicator().agreed(lambda: (_ for _ in ()).throw(error))
    assert raised.value is error
