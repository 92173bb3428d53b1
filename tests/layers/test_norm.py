"""Normalisation layers against the dense oracle, with and without affine parts, in training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng import Preconditioner
from seng.testing import EXACT, blocks_of, check_direction, check_layer, flat_gradient, relative_error

from .draws import batches, examples, option_sets, seeds, sizes

BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def _drawn(make: Callable[[], nn.Module], training: bool, frozen: str | None) -> Callable[[], nn.Module]:
    """Make the module with random parameters and running statistics."""

    def module() -> nn.Module:
        layer = make().train(training)
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 2.0)
        if frozen is not None and getattr(layer, frozen, None) is not None:
            getattr(layer, frozen).requires_grad_(False)
        return layer

    return module


frozen_parts = st.sampled_from([None, "weight", "bias"])


@pytest.mark.parametrize("axes", [0, *BATCH_NORMS])
def test_batch_norm_matches_oracle(axes: int):
    @examples(25)
    @given(n=st.integers(3, 6), channels=sizes, space=st.tuples(*[sizes] * axes), tracked=st.booleans(),
           training=st.booleans(), frozen=frozen_parts, options=option_sets(), seed=seeds)  # fmt: skip
    def law(n: int, channels: int, space: tuple[int, ...], tracked: bool, training: bool, frozen: str | None,
            options: dict[str, Any], seed: int):  # fmt: skip
        make = _drawn(lambda: BATCH_NORMS[max(axes, 1)](channels, track_running_stats=tracked), training, frozen)
        check_layer(make, lambda: torch.randn(n, channels, *space), seed=seed, **options)

    law()


@pytest.mark.parametrize("axes", INSTANCE_NORMS)
def test_instance_norm_matches_oracle(axes: int):
    @examples(25)
    @given(n=batches, channels=sizes, space=st.tuples(*[st.integers(2, 4)] * axes), tracked=st.booleans(),
           training=st.booleans(), frozen=frozen_parts, options=option_sets(), seed=seeds)  # fmt: skip
    def law(n: int, channels: int, space: tuple[int, ...], tracked: bool, training: bool, frozen: str | None,
            options: dict[str, Any], seed: int):  # fmt: skip
        make = _drawn(
            lambda: INSTANCE_NORMS[axes](channels, affine=True, track_running_stats=tracked), training, frozen
        )
        check_layer(make, lambda: torch.randn(n, channels, *space), seed=seed, **options)

    law()


@examples(25)
@given(n=batches, groups=st.integers(1, 2), each=st.integers(1, 2), space=st.lists(st.integers(2, 3), max_size=3),
       frozen=frozen_parts, options=option_sets(), seed=seeds)  # fmt: skip
def test_group_norm_matches_oracle(
    n: int, groups: int, each: int, space: list[int], frozen: str | None, options: dict[str, Any], seed: int
):
    make = _drawn(lambda: nn.GroupNorm(groups, groups * (each + 1)), True, frozen)
    check_layer(make, lambda: torch.randn(n, groups * (each + 1), *space), seed=seed, **options)


@examples(40)
@given(n=batches, middle=st.lists(sizes, max_size=2), last=st.integers(2, 4), first=st.lists(sizes, max_size=2),
       kind=st.sampled_from([nn.LayerNorm, nn.RMSNorm]), bias=st.booleans(), frozen=frozen_parts,
       options=option_sets(), seed=seeds)  # fmt: skip
def test_trailing_norm_matches_oracle_over_several_dimensions(
    n: int, middle: list[int], last: int, first: list[int], kind: type[nn.Module], bias: bool, frozen: str | None,
    options: dict[str, Any], seed: int,
):  # fmt: skip
    shape = [*first, last]
    extra = {"bias": bias} if kind is nn.LayerNorm else {}
    if kind is nn.RMSNorm or not bias:  # the weight is all there is
        frozen = None
    check_layer(
        _drawn(lambda: kind(shape, **extra), True, frozen),
        lambda: torch.randn(n, *middle, *shape),
        seed=seed,
        **options,
    )


@pytest.mark.parametrize("axes", INSTANCE_NORMS)
def test_unbatched_instance_norm_accumulates_to_the_direction_of_its_batch(axes: int):
    generator = torch.Generator().manual_seed(axes)
    x = torch.randn(4, 2, *(3,) * axes, generator=generator, dtype=torch.float64)
    directions = []
    for parts in ([x], list(x)):
        layer = INSTANCE_NORMS[axes](2, affine=True, dtype=torch.float64)
        pre = Preconditioner(layer, estimator="exact")
        for part in parts:
            (layer(part).tanh().square().sum() / len(x)).backward()
        pre.step()
        (block,) = blocks_of(layer).values()
        directions.append(flat_gradient(block))
    assert relative_error(directions[1], directions[0]) <= EXACT


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm1d(3, affine=False),
    "layer": lambda: nn.LayerNorm([3, 4], elementwise_affine=False),
    "group": lambda: nn.GroupNorm(1, 3, affine=False),
    "instance": lambda: nn.InstanceNorm1d(3),
    "rms": lambda: nn.RMSNorm(4, elementwise_affine=False),
}


@pytest.mark.parametrize("name", PLAIN)
def test_norm_without_affine_parts_is_transparent(name: str):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), PLAIN[name](), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    assert set(blocks_of(model)) == {"0", "3"}
    check_direction(model, lambda: model(x).tanh().sum(1).square().mean(), 6)


@pytest.mark.parametrize("training", [True, False])
def test_norms_between_layers_match_oracle_with_batch_statistics(training: bool):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 4, 2, bias=False), nn.GroupNorm(2, 4),
        nn.ReLU(True), nn.Flatten(2), nn.LayerNorm(4), nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3),
    ).double()  # fmt: skip
    model.train(training)
    x = torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64)
    check_direction(model, lambda: model(x).tanh().square().sum(1).mean(), 6, power=0.5)
