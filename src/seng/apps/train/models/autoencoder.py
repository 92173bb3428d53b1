"""The deep autoencoder on which second-order methods have been compared since 2006."""

from __future__ import annotations

import itertools

from torch import nn


def deep_autoencoder(widths: tuple[int, ...]) -> nn.Module:
    """Build a tanh autoencoder, its decoder the encoder's mirror image; the output is linear.

    Args:
        widths: the picture's size, the hidden layers', and last the code's: 784, 500, 250, 100, 30.

    Returns:
        A module from ``[n, ...]`` with ``widths[0]`` numbers a sample to ``[n, widths[0]]``.

    Source: Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006; start of
    Glorot and Bengio, 2010.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise((*widths, *widths[-2::-1])):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight)  # torch's own start shrinks the signal by 3 ** 4 on its way
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
