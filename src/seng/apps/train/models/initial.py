"""Initial weights of deep convolutional networks."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def he_normal(model: Network) -> Network:
    """Draw the weights of all convolutions so that a ReLU network keeps its gradients' size; return the model.

    Deviation sqrt(2 / fan_out), biases 0; other layers keep torch's own start, norms their scale of 1. Some start the
    last norm of each block at 0: the layers under it have no gradient in the first step then, and the curvature of
    that step may be held for hundreds.

    Source: He et al., Delving Deep into Rectifiers, 2015.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
