"""Bilinear layers: products with the pairs of features of both inputs."""

from __future__ import annotations

from torch import nn

from .contract import Gradients, LayerCall
from .linear import product


def bilinear(module: nn.Module, call: LayerCall) -> Gradients:
    """Inputs are all products of a feature of x1 with one of x2: a [1, n, s, in1 in2], g [1, n, s, out].

    Dimensions between the batch and the features are positions; inputs without a batch dimension are one sample.
    """
    assert isinstance(module, nn.Bilinear)
    x1, x2, g = call.argument(0, "input1"), call.argument(1, "input2"), call.g
    n, s = x1.shape[0] if x1.dim() > 1 else 1, x1.shape[1:-1].numel()
    pairs = x1.reshape(n, s, -1, 1) * x2.reshape(n, s, 1, -1)
    return product(pairs.flatten(2)[None], g.reshape(1, n, s, -1), call.wanted)
