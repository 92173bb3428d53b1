"""Linear layers with any leading dimensions."""

from __future__ import annotations

from torch import Tensor, nn

from ..per_sample import Product
from .contract import Gradients, LayerCall, Names


def linear(module: nn.Module, call: LayerCall) -> Gradients:
    """Dimensions between the batch and the features are positions: a [1, n, s, d_in], g [1, n, s, d_out].

    An input without a batch dimension is one sample.
    """
    x, g = call.x, call.g
    n, s = x.shape[0] if x.dim() > 1 else 1, x.shape[1:-1].numel()
    return product(x.reshape(1, n, s, x.shape[-1]), g.reshape(1, n, s, g.shape[-1]), call.wanted)


def product(a: Tensor, g: Tensor, wanted: Names, weight: str = "weight", bias: str = "bias") -> Gradients:
    """Return the product of a and g, as far as it is wanted: the bias rows alone where the weight is frozen."""
    if weight in wanted:
        names = (weight, bias) if bias in wanted else (weight,)
        return {names: Product(a, g, bias in wanted)}
    return {bias: g.sum(2).transpose(0, 1).flatten(1)} if bias in wanted else {}
