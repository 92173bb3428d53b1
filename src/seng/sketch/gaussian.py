"""Dense Gaussian sketch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Heavy, Sketch


@dataclass(frozen=True)
class Dense(Sketch):
    """An explicit matrix S [q, d]."""

    matrix: Tensor

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.matrix)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch q"]:
        return x @ self.matrix.to(x).T


@partial(Heavy, nbytes=lambda d, q: 4 * d * q)
def gaussian(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Dense:
    """Draw S with independent N(0, 1/q) entries.

    Cost: O(q d) memory and per vector. Source: Johnson and Lindenstrauss (1984).
    """
    return Dense(torch.randn(q, d, generator=generator, dtype=torch.float32) / q**0.5)
