"""Convolutions against the dense oracle: every stride, padding, dilation, grouping and padding mode."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seng import Preconditioner
from seng.testing import EXACT, check_layer, relative_error

from .draws import batches, examples, option_sets, seeds

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PIXELS = {1: 7, 2: 5, 3: 4}  # at most so many a side, which keeps the oracle small


class Geometry(NamedTuple):
    """Arguments of a convolution, and the shape of one sample."""

    arguments: dict[str, Any]
    sample: tuple[int, ...]


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> Geometry:
    """Any valid convolution with a few parameters."""

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2))
    space = each(2, PIXELS[axes])
    kernel, dilation, stride = each(1, 3 if axes < 3 else 2), each(1, 2), each(1, 2)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding: Any = draw(st.sampled_from(["same", "valid", "number"]))
    if padding == "same":
        stride = (1,) * axes
    if padding == "number":
        padding = tuple(min(side - 1, draw(st.integers(0, 2))) for side in space)
    if padding == "same" and mode in ("reflect", "circular"):  # these pad less than a side at most
        space = tuple(max(side, (k - 1) * d + 1) for side, k, d in zip(space, kernel, dilation, strict=True))
    pads = padding if isinstance(padding, tuple) else (0,) * axes
    if padding != "same":  # room for the kernel
        reach = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, pads, strict=True)]
        space = tuple(max(side, least) for side, least in zip(space, reach, strict=True))
    arguments = {"in_channels": channels, "out_channels": groups * draw(st.integers(1, 2)), "kernel_size": kernel,
                 "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode,
                 "bias": draw(st.booleans())}  # fmt: skip
    return Geometry(arguments, (channels, *space))


@pytest.mark.parametrize("axes", KINDS)
def test_convolution_matches_oracle_for_any_geometry(axes: int):
    @examples(50)
    @given(geometry=geometries(axes), n=batches, options=option_sets(), seed=seeds)
    def law(geometry: Geometry, n: int, options: dict[str, Any], seed: int):
        make = KINDS[axes]
        check_layer(lambda: make(**geometry.arguments), lambda: torch.randn(n, *geometry.sample), seed=seed, **options)

    law()


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("axes", KINDS)
def test_convolution_matches_oracle_with_a_frozen_parameter(axes: int, frozen: str):
    def module() -> nn.Module:
        layer = KINDS[axes](4, 2, 2, groups=2)
        getattr(layer, frozen).requires_grad_(False)
        return layer

    check_layer(module, lambda: torch.randn(3, 4, *(3,) * axes))


def test_convolution_matches_oracle_in_channels_last():
    def module() -> nn.Module:
        return nn.Conv2d(4, 2, 3, padding=1, groups=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images() -> Tensor:
        return torch.randn(3, 4, 5, 4).to(memory_format=torch.channels_last)

    check_layer(module, images)


def test_convolution_matches_oracle_on_inputs_that_overlap_in_memory():
    check_layer(lambda: nn.Conv1d(2, 3, 2), lambda: torch.randn(9).unfold(0, 5, 1)[:4, None].expand(4, 2, 5))


@pytest.mark.parametrize("axes", KINDS)
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_unbatched_inputs_accumulate_to_the_direction_of_their_batch(axes: int, power: float):
    n, torch_generator = 4, torch.Generator().manual_seed(axes)
    x = torch.randn(n, 2, *(4,) * axes, generator=torch_generator, dtype=torch.float64)
    directions = []
    for parts in ([x], list(x)):
        layer = KINDS[axes](2, 3, 2, dtype=torch.float64)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        pre = Preconditioner(layer, power=power, estimator="exact")
        for part in parts:
            (layer(part).tanh().sum() / n).backward()
        pre.step()
        assert all(stats.samples == n for stats in pre.stats().values())
        directions.append(torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]))
    assert relative_error(directions[1], directions[0]) <= EXACT
