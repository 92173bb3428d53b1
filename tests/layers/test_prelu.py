"""PReLU against the dense oracle."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seng.testing import check_layer

from .draws import batches, examples, option_sets, seeds, sizes


@examples(30)
@given(n=batches, channels=sizes, space=st.lists(sizes, max_size=2), single=st.booleans(), options=option_sets(),
       seed=seeds)  # fmt: skip
def test_prelu_matches_oracle(
    n: int, channels: int, space: list[int], single: bool, options: dict[str, Any], seed: int
):
    make = lambda: nn.PReLU(1 if single else channels)  # noqa: E731
    check_layer(make, lambda: torch.randn(n, channels, *space), seed=seed, **options)
