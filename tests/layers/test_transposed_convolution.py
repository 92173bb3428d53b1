"""Transposed convolutions against the dense oracle, with any geometry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng.testing import blocks_of, check_direction, check_layer

from .draws import batches, examples, option_sets, seeds

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of any valid transposed convolution with a few parameters, and the shape of one sample."""

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = draw(st.integers(1, 2))
    channels, kernel, stride, dilation = groups * draw(st.integers(1, 2)), each(1, 3), each(1, 2), each(1, 2)
    extra = tuple(draw(st.integers(0, max(step, gap) - 1)) for step, gap in zip(stride, dilation, strict=True))
    space, reach = each(1, 3), [(k - 1) * gap for k, gap in zip(kernel, dilation, strict=True)]
    sides = [(side - 1) * step + far + more for side, step, far, more in zip(space, stride, reach, extra, strict=True)]
    padding = tuple(draw(st.integers(0, min(2, side // 2))) for side in sides)
    arguments = {"in_channels": channels, "out_channels": groups * draw(st.integers(1, 2)), "kernel_size": kernel,
                 "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
                 "output_padding": extra, "bias": draw(st.booleans())}  # fmt: skip
    return arguments, (channels, *space)


@pytest.mark.parametrize("axes", KINDS)
def test_transposed_convolution_matches_oracle_for_any_geometry(axes: int):
    @examples(30)
    @given(geometry=geometries(axes), n=batches, options=option_sets(), seed=seeds)
    def law(geometry: tuple[dict[str, Any], tuple[int, ...]], n: int, options: dict[str, Any], seed: int):
        arguments, sample = geometry
        check_layer(lambda: KINDS[axes](**arguments), lambda: torch.randn(n, *sample), seed=seed, **options)

    law()


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_transposed_convolution_matches_oracle_with_a_frozen_parameter(frozen: str):
    def module() -> nn.Module:
        layer = nn.ConvTranspose2d(4, 2, 2, groups=2)
        getattr(layer, frozen).requires_grad_(False)
        return layer

    check_layer(module, lambda: torch.randn(3, 4, 3, 3))


@pytest.mark.parametrize("estimator", ["exact", "auto", "explicit", "implicit", "truncated"])
def test_weight_and_bias_are_one_block_whatever_the_estimator(estimator: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(40, 2, 3, dtype=torch.float64)  # more samples than parameters, too
    assert set(blocks_of(model)) == {"0", "2"}
    full = {"sketch_size": 64, "rank": 16, "estimator": estimator}
    check_direction(model, lambda: model(x).tanh().square().sum(1).mean(), 40, tolerance=1e-3, **full)
    check_direction(model, lambda: model(x[:5]).tanh().square().sum(1).mean(), 5, tolerance=1e-3, **full)
