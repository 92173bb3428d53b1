"""Linear layers with ReLU between: for tables, and for pictures where a step has to be cheap."""

from __future__ import annotations

import itertools

from torch import nn


def perceptron(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a perceptron from ``[n, ...]`` with ``inputs`` numbers a sample to ``[n, outputs]``.

    Args:
        inputs: numbers of a sample.
        hidden: widths of the hidden layers.
        outputs: numbers it returns.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise((inputs, *hidden, outputs)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
