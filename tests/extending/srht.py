"""A sketch of a third party: the subsampled randomised Hadamard transform, one file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seng.sketch import Sketch


@dataclass(frozen=True)
class Hadamard(Sketch):
    """S = sqrt(1 / q) P H D for random signs D, the Hadamard matrix H with entries +-1, and q rows P of it."""

    signs: Tensor
    index: Tensor

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.index)

    def __call__(self, x: Tensor) -> Tensor:
        width = 1 << (len(self.signs) - 1).bit_length()
        y = torch.nn.functional.pad(x * self.signs.to(x), (0, width - x.shape[-1]))
        half = 1
        while half < width:
            left, right = y.unflatten(-1, (-1, 2, half)).unbind(-2)
            y = torch.stack([left + right, left - right], -2).flatten(-3)
            half *= 2
        return y[..., self.index.to(x.device)] / self.size**0.5


def srht(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Hadamard:
    """Draw signs and rows. Source: Ailon and Chazelle (2006); Tropp (2011)."""
    signs = torch.randint(0, 2, (d,), generator=generator) * 2 - 1
    return Hadamard(signs, torch.randperm(1 << (d - 1).bit_length(), generator=generator)[:q])
