"""Embeddings against the dense oracle."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng import Preconditioner
from seng.testing import check_layer

from .draws import batches, examples, option_sets, seeds, sizes


@examples(50)
@given(n=batches, middle=st.lists(sizes, max_size=3), vocabulary=st.integers(2, 8), d=sizes,
       padding=st.none() | st.integers(-2, 1), options=option_sets(), seed=seeds)  # fmt: skip
def test_embedding_matches_oracle(
    n: int, middle: list[int], vocabulary: int, d: int, padding: int | None, options: dict[str, Any], seed: int
):
    check_layer(
        lambda: nn.Embedding(vocabulary, d, padding_idx=padding),
        lambda: torch.cat([torch.randint(vocabulary, (n - 1, *middle)), torch.full((1, *middle), vocabulary // 2)]),
        seed=seed,
        **options,
    )


def test_embedding_padding_row_never_moves():
    layer = nn.Embedding(5, 3, padding_idx=2)
    pre = Preconditioner(layer)
    layer(torch.tensor([[0, 2], [1, 2], [2, 2]])).square().sum().backward()
    pre.step()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[2].any()
    assert layer.weight.grad[0].any()


def test_embedding_options_that_change_gradients_pass_through():
    options: dict[str, Any] = {"sparse": True, "scale_grad_by_freq": True, "max_norm": 1.0}
    for option, value in options.items():
        layer = nn.Embedding(5, 3, **{option: value})
        model = nn.Sequential(layer, nn.Linear(3, 2))
        pre = Preconditioner(model)
        model(torch.tensor([0, 1, 1])).square().mean().backward()
        pre.step()
        assert list(pre.stats()) == ["1"]
        assert pre.coverage().passed_through == {"0.weight": f"Embedding with {option} is not supported"}
