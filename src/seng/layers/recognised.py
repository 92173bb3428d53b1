"""Layers of other libraries, recognised without importing them: by their name, or by what they compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..per_sample import Product
from .contract import Gradients, Layer, LayerCall
from .norm import trailing_rows

CONV1D = ("transformers.pytorch_utils", "Conv1D")
CLOSE = 1e-4  # relative rounding errors of float32 that two ways to normalise may differ by
_known: WeakKeyDictionary[nn.Module, Layer | None] = WeakKeyDictionary()


def recognised(module: nn.Module) -> Layer | None:
    """Return the layer of a module whose type is in no table, or None.

    What a module computes is asked once; it is called with random inputs and weights on the CPU.
    """
    if module not in _known:
        _known[module] = _conv1d(module) or _rms_norm(module)
    return _known[module]


def input_major_linear(module: nn.Module, call: LayerCall) -> Gradients:
    """Give the gradients of y = x W + b, W [d_in, d_out]: the product's rows belong to the inputs."""
    x, g = call.x, call.g
    n, s = x.shape[0] if x.dim() > 1 else 1, x.shape[1:-1].numel()
    x, g = x.reshape(1, n, s, x.shape[-1]), g.reshape(1, n, s, g.shape[-1])
    found: dict[Any, Any] = {"bias": g[0].sum(1)} if "bias" in call.wanted else {}
    if "weight" in call.wanted:
        found["weight",] = Product(g, x)
    return found


def _conv1d(module: nn.Module) -> Layer | None:
    for kind in type(module).__mro__:
        if (kind.__module__, kind.__qualname__) == CONV1D and type(module).forward is kind.forward:
            return Layer(
                input_major_linear, lambda module: (("weight",), ("bias",)), joint=True, batched=lambda module: 2
            )
    return None


@dataclass(frozen=True)
class RootMeanSquareNorm:
    """The gradients of x / sqrt(mean(x^2) + eps) * w, or times 1 + w, over the last dimension.

    Args:
        eps: What is added to the mean square.
    """

    eps: float

    def __call__(self, module: nn.Module, call: LayerCall) -> Gradients:
        return trailing_rows(self.normal(call.x), call.g, 1, call.wanted, call.wanted[0])

    def normal(self, x: Tensor) -> Tensor:
        """Return x without its scale."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def _rms_norm(module: nn.Module) -> Layer | None:
    own = [(name, p) for name, p in module._parameters.items() if p is not None]
    if len(own) != 1 or own[0][1].dim() != 1 or module._modules or module._buffers:
        return None
    name, weight = own[0]
    for eps in [value for key, value in vars(module).items() if "eps" in key and isinstance(value, float)]:
        norm = RootMeanSquareNorm(eps)
        with torch.device("cpu"):
            if _computes(module, name, norm, len(weight)):
                return Layer(norm, batched=lambda module: 2)
    return None


@torch.no_grad()
def _computes(module: nn.Module, name: str, norm: RootMeanSquareNorm, d: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(d, generator=generator), torch.randn(2, d, generator=generator)
    x[1] *= norm.eps**0.5  # where eps counts
    held = module._parameters[name]
    module._parameters[name] = w  # type: ignore[assignment]
    try:
        y = type(module).forward(module, x)  # past all hooks
    except Exception:  # whatever another module does with such a call
        return False
    finally:
        module._parameters[name] = held
    scales = (w, 1 + w) if isinstance(y, Tensor) and y.shape == x.shape else ()
    return any(bool((y - norm.normal(x) * s).norm() <= CLOSE * y.norm()) for s in scales)
