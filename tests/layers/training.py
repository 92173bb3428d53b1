"""Training as users do it, for layers whose laws are proven elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from seng import SENG


def assert_all_of_it_trains(model: nn.Module, loss: Callable[[], Tensor], **options: Any) -> None:
    """Check that twelve steps lower the loss, and that every parameter is preconditioned."""
    optimizer, first = SENG(model, lr=0.05, **options), loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first
    assert optimizer.coverage().share == 1.0
