"""What a choice of Fisher matrix answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..trees import Leaves

SampleFunction = Callable[[Leaves, Any], Tensor]  # leaves, one sample (or the whole batch) -> any shape


class Fisher(ABC):
    """Which functions of the parameters are differentiated into rows, and how the loss's gradient follows from them.

    Laws every subclass obeys: rows are J = d ``outputs`` / d parameters, scaled by sqrt(weight / rows); the loss is
    weight * mean(``losses``); where ``coefficients`` is not None, J^T coefficients, both scaled, is the gradient of
    the loss; where it is None, the engine takes that gradient by one backward pass.
    """

    classifies = False  # samples are pairs (inputs, targets); the engine attaches a uniform number to each

    @abstractmethod
    def losses(self, fn: SampleFunction) -> SampleFunction:
        """Return the function whose mean over samples is the loss."""

    @abstractmethod
    def outputs(self, fn: SampleFunction) -> SampleFunction:
        """Return the function whose derivatives are rows."""

    def losses_of(self, outputs: Tensor) -> Tensor | None:
        """Return the samples' losses from the outputs' values, or None where these do not tell them."""
        return None

    @abstractmethod
    def coefficients(self, outputs: Tensor) -> Tensor | None:
        """Return r with gradient = J^T r before scaling, from the outputs' values."""
