"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import torch

from ..config import DataConfig
from .base import Dataset, Signature, Source, standardised


def load_digits(config: DataConfig) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,347 to train on and 450 to test on.

    The split is one fixed random permutation, the same for every seed.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # takes a second: only when asked for

    pixels, labels = sklearn_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().reshape(-1, 8, 8)[order]
    targets = torch.from_numpy(labels).long()[order]
    return standardised(images[:1347], targets[:1347], images[1347:], targets[1347:])


DIGITS = Source(
    load_digits,
    status=lambda config: "comes with scikit-learn",
    signature=lambda config: Signature((1, 8, 8), classes=10),
)
