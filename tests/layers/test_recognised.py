"""Layers of other libraries: transformers' Conv1D and normalisations by the root mean square, whatever their class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from seng.layers import layer_of
from seng.testing import blocks_of, check_layer, check_rows

from .draws import batches, examples, option_sets, seeds, sizes


class OwnNorm(nn.Module):
    """A normalisation of one's own: its parameter is called ``gain``, its eps is keyword-only."""

    def __init__(self, d: int, *, epsilon: float = 0.1):
        super().__init__()
        self.gain, self.epsilon = nn.Parameter(torch.zeros(d)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * (1 + self.gain)


NORMS = [OwnNorm, LlamaRMSNorm, Qwen2RMSNorm, GemmaRMSNorm, T5LayerNorm]
ROUNDING: dict[type[nn.Module], float] = {OwnNorm: 1e-9}  # the others normalise in float32


@pytest.mark.parametrize("kind", NORMS)
def test_rms_norms_of_any_class_match_oracle(kind: type[nn.Module]):
    @examples(10)
    @given(n=batches, middle=st.lists(sizes, max_size=2), d=st.integers(2, 5), seed=seeds)
    def law(n: int, middle: list[int], d: int, seed: int):
        torch.manual_seed(seed)
        norm = kind(d).double()
        nn.init.normal_(next(norm.parameters()))
        assert layer_of(norm) is not None
        x, w = torch.randn(2, n, *middle, d, dtype=torch.float64)
        check_rows(norm, lambda: (norm(x).tanh() * w).sum(), n, tolerance=ROUNDING.get(kind, 1e-5))

    law()


class Centred(OwnNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class Doubled(OwnNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class WrongEps(OwnNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 2 * self.epsilon).sqrt() * (1 + self.gain)


class Refusing(OwnNorm):
    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("no tensors today")


@pytest.mark.parametrize("kind", [Centred, Doubled, WrongEps, Refusing])
def test_what_computes_something_else_is_not_recognised(kind: type[OwnNorm]):
    norm = kind(4)
    before = norm.gain
    assert layer_of(norm) is None
    assert norm.gain is before
    assert not before.any()


def test_recognition_needs_no_data_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert layer_of(LlamaRMSNorm(4)) is not None
    assert layer_of(LlamaRMSNorm(4).to(torch.bfloat16)) is not None
    assert torch.equal(before, torch.get_rng_state())


@examples(30)
@given(n=batches, middle=st.lists(sizes, max_size=2), d=st.tuples(sizes, sizes),
       frozen=st.sampled_from(["", "weight", "bias"]), options=option_sets(), seed=seeds)  # fmt: skip
def test_conv1d_of_transformers_matches_oracle(
    n: int, middle: list[int], d: tuple[int, int], frozen: str, options: dict[str, Any], seed: int
):
    def module() -> nn.Module:
        layer = Conv1D(d[1], d[0])
        assert set(blocks_of(layer)) == {""}
        nn.init.normal_(layer.bias)
        if frozen:
            layer.get_parameter(frozen).requires_grad_(False)
        return layer

    check_layer(module, lambda: torch.randn(n, *middle, d[0]), seed=seed, **options)
