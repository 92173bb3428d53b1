"""Wrappers that are looked through or refused, and how tensors are cut among ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from seng.errors import ModelError
from seng.wrappers import Cut, cut_of, own_part, unwrap


class FullyShardedDataParallel(nn.Module):
    """Has the name of torch's first fully sharded wrapper, which needs a process group."""


class DeepSpeedEngine(FullyShardedDataParallel):
    """Has the name of DeepSpeed's wrapper, which is not installed."""


@pytest.mark.parametrize(
    ("wrapped", "name", "instead"),
    [
        (nn.DataParallel(nn.Linear(2, 2)), "DataParallel", "torch.nn.parallel.DistributedDataParallel"),
        (nn.Sequential(FullyShardedDataParallel()), "FullyShardedDataParallel", "torch.distributed.fsdp.fully_shard"),
        (DeepSpeedEngine(), "DeepSpeedEngine", "fully_shard, or DistributedDataParallel"),
    ],
)
def test_wrappers_that_hooks_cannot_follow_are_refused(wrapped: nn.Module, name: str, instead: str):
    with pytest.raises(ModelError, match=rf"unsupported wrapper: .* got '{name}'\. Use .*{instead}"):
        unwrap(wrapped, "call()")


def test_parameters_that_deepspeed_has_cut_are_refused():
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="parameters of DeepSpeed ZeRO: .* got 'weight'. Use torch.distributed.fsdp"):
        unwrap(model, "call()")


def test_wrappers_are_looked_through():
    model = nn.Sequential(nn.Linear(2, 2))
    compiled: Any = torch.compile(model, backend="eager")
    assert unwrap(compiled, "call()") is model
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # without a process group
    nn.Module.__init__(wrapped)
    wrapped.module = compiled
    assert unwrap(wrapped, "call()") is model


def test_plain_parameters_are_whole():
    parameter = nn.Parameter(torch.ones(3))
    assert cut_of(parameter) is None
    assert own_part(parameter) is parameter


@given(st.integers(0, 9), st.integers(1, 4), st.integers(0, 1), st.integers(1, 5))
def test_cut_is_that_of_chunk_and_joins_again(rows: int, columns: int, axis: int, world: int):
    whole = torch.arange(rows * columns).view(rows, columns)
    cut = Cut((rows, columns), axis, world)
    parts = [cut.part(whole, rank) for rank in range(world)]
    chunks = list(whole.chunk(world, axis)) if whole.shape[axis] else []
    assert [list(part.shape) for part in parts] == [list(cut.shape_of(rank)) for rank in range(world)]
    assert all(torch.equal(part, chunk) for part, chunk in zip(parts, chunks, strict=False))
    assert all(not part.numel() for part in parts[len(chunks) :])
    assert torch.equal(cut.join(parts), whole)
