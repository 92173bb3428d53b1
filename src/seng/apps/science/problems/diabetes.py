"""Regression on real data: how a disease goes on within a year, from ten numbers of a patient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import DTYPE, Points, Problem

TRAINING = 342  # patients to learn from; the other 100 are judged
PRIOR = 3.0  # weight of the mean squared parameter: 193 normal parameters of variance 0.09 beside noise of variance 1/2


def diabetes() -> Problem:
    """Regression on scikit-learn's diabetes data: 442 real patients, ten inputs, a small network with a prior."""
    from sklearn.datasets import load_diabetes  # a second that no other problem needs to wait

    raw, targets = load_diabetes(return_X_y=True, scaled=False)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(raw).to(DTYPE)[order], torch.from_numpy(targets).to(DTYPE)[order]
    x, y = ((values - values[:TRAINING].mean(0)) / values[:TRAINING].std(0) for values in (x, y))

    def data(u: Any, sample: tuple[Tensor, Tensor]) -> Tensor:
        return u(sample[0])[0] - sample[1]

    def prior(u: Any, _: Tensor) -> Tensor:
        return torch.cat([p.reshape(-1) for p in u.parameters()])

    def draw(generator: torch.Generator) -> Points:
        return {"data": (x[:TRAINING], y[:TRAINING]), "prior": torch.zeros(1, dtype=DTYPE)}

    return Problem(
        (10, 16, 1), {"data": data, "prior": prior}, draw, x[TRAINING:], y[TRAINING:], seconds=5.0,
        weights={"prior": PRIOR},
    )  # fmt: skip
