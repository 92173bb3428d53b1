"""Bags of embeddings against the dense oracle and, where bags are ragged, against each bag's own loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng.testing import check_layer

from .draws import batches, examples, option_sets, seeds, sizes
from .samples import check_samples

MODES = ["sum", "mean", "max"]


@examples(40)
@given(n=batches, length=st.integers(6, 8), vocabulary=st.integers(2, 8), d=sizes, mode=st.sampled_from(MODES),
       padding=st.none() | st.integers(-2, 1), weighted=st.booleans(), options=option_sets(), seed=seeds)  # fmt: skip
def test_embedding_bag_matches_oracle(
    n: int, length: int, vocabulary: int, d: int, mode: str, padding: int | None, weighted: bool,
    options: dict[str, Any], seed: int,
):  # fmt: skip
    def inputs() -> dict[str, torch.Tensor]:
        weights = {"per_sample_weights": torch.randn(n, length)} if weighted and mode == "sum" else {}
        return {"input": torch.randint(vocabulary, (n, length)), **weights}

    make = lambda: nn.EmbeddingBag(vocabulary, d, mode=mode, padding_idx=padding)  # noqa: E731
    check_layer(make, inputs, seed=seed, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ragged_bags_have_the_gradients_of_their_own_losses(mode: str, last: bool, weighted: bool):
    torch.manual_seed(0)
    layer = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=2, include_last_offset=last).double()
    lengths = [3, 0, 5, 1]
    ids, starts = torch.randint(7, (sum(lengths),)), [0, 3, 3, 8, *([9] if last else [])]
    weights = torch.randn(len(ids), dtype=torch.float64) if weighted and mode == "sum" else None
    check_samples(layer, lambda: layer(ids, torch.tensor(starts), weights).tanh().square().sum(1))
