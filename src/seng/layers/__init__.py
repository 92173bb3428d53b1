"""Layers: how each supported module gives its per-sample gradients.

A layer is one function of the module and a call, ``LayerCall``: inputs, output gradients and the names of the wanted
parameters. It returns ``{name: gradients [n, *parameter.shape]}``; parameters whose gradients are kept as a product or
a lookup are named together, by a tuple. A new layer is a call of ``register``, and in the library a line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from ..errors import OptionError
from .attention import attention, attention_draws, attention_parts
from .bare import Bare, bare
from .bilinear import bilinear
from .contract import (
    Gradients,
    Layer,
    LayerCall,
    LayerFunction,
    Names,
    UnsupportedCall,
    gradients_of,
    never,
    own_parameters,
    parameter_of,
)
from .convolution import convolution, transposed_convolution
from .embedding import embedding, embedding_bag, unsupported_embedding
from .linear import linear
from .norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from .parametrized import parametrized
from .prelu import prelu
from .randomness import RandomState
from .recognised import recognised
from .recurrent import recurrent, recurrent_draws, recurrent_parts

__all__ = [
    "LAYERS",
    "UNSUPPORTED_CONTAINERS",
    "Bare",
    "Gradients",
    "Layer",
    "LayerCall",
    "LayerFunction",
    "Names",
    "RandomState",
    "UnsupportedCall",
    "bare",
    "gradients_of",
    "layer_of",
    "never",
    "own_parameters",
    "parameter_of",
    "register",
]


def affine(module: nn.Module) -> tuple[Names, ...]:
    """Return the names of a weight and a bias, as one part."""
    return (("weight", "bias"),)


def apart(module: nn.Module) -> tuple[Names, ...]:
    """Return the names of a weight and of a bias that is not a column of it."""
    return ("weight",), ("bias",)


def at_least(dimensions: int) -> Callable[[nn.Module], int]:
    """Return a function that gives a number of dimensions, whatever the module."""
    return lambda module: dimensions


def spatial(module: nn.Module) -> int:
    """Return the number of dimensions of a convolution's input with a batch."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    return len(module.kernel_size) + 2


def normalised(module: nn.Module) -> int:
    """Return the number of dimensions of a normalisation's smallest input with a batch."""
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return len(module.normalized_shape) + 1


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: Layer(linear, affine, batched=at_least(2)),
    nn.Conv1d: Layer(convolution, affine, batched=spatial),
    nn.Conv2d: Layer(convolution, affine, batched=spatial),
    nn.Conv3d: Layer(convolution, affine, batched=spatial),
    nn.ConvTranspose1d: Layer(transposed_convolution, apart, joint=True),
    nn.ConvTranspose2d: Layer(transposed_convolution, apart, joint=True),
    nn.ConvTranspose3d: Layer(transposed_convolution, apart, joint=True),
    nn.Bilinear: Layer(bilinear, affine),
    nn.Embedding: Layer(embedding, affine, unsupported_embedding, batched=at_least(1)),
    nn.EmbeddingBag: Layer(embedding_bag, affine, unsupported_embedding),
    nn.BatchNorm1d: Layer(batch_norm, affine),
    nn.BatchNorm2d: Layer(batch_norm, affine),
    nn.BatchNorm3d: Layer(batch_norm, affine),
    nn.LayerNorm: Layer(layer_norm, affine, batched=normalised),
    nn.GroupNorm: Layer(group_norm, affine, batched=at_least(2)),
    nn.InstanceNorm1d: Layer(instance_norm, affine),
    nn.InstanceNorm2d: Layer(instance_norm, affine),
    nn.InstanceNorm3d: Layer(instance_norm, affine),
    nn.RMSNorm: Layer(rms_norm, affine, batched=normalised),
    nn.PReLU: Layer(prelu),
    nn.MultiheadAttention: Layer(attention, attention_parts, draws=attention_draws, reads=True),
    nn.LSTM: Layer(recurrent, recurrent_parts, draws=recurrent_draws, reads=True),
    nn.GRU: Layer(recurrent, recurrent_parts, draws=recurrent_draws, reads=True),
    nn.RNN: Layer(recurrent, recurrent_parts, draws=recurrent_draws, reads=True),
}

# modules that read their children's parameters without calling the children: their weights pass through
UNSUPPORTED_CONTAINERS: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "nn.MultiheadAttention reads its projections without calling a layer",
}


def layer_of(module: nn.Module) -> Layer | None:
    """Return the layer of a module, or None.

    It is that of the nearest type in the table that has the module's own forward pass, else what ``recognised`` finds.
    """
    for kind in type(module).__mro__:
        if kind in LAYERS and type(module).forward is kind.forward:
            return parametrized(module, LAYERS[kind])
    return recognised(module)


def register(
    module_type: type[nn.Module], function: LayerFunction, *, parts: Iterable[Iterable[str]] | None = None
) -> None:
    """Make the modules of a type supported layers; a type that is one already gets the new function.

    ``function(module, call)`` returns ``{name: u}``, where u [n, *parameter.shape] holds what each sample adds to the
    parameter's ``.grad``. It is asked at refreshes, after backward, for the names in ``call.wanted``. Subclasses are
    supported, too, unless they have a forward pass of their own; register those by themselves.
    ``seng.testing.check_layer`` proves a function right.

    Args:
        module_type: The type.
        function: From the module and a ``LayerCall`` to the per-sample gradients.
        parts: The names of the parameters: those preconditioned together as one tuple. All of the module's own by
            default, together.

    Raises:
        OptionError: The type is none of modules, the function cannot be called, or a name stands twice.

    Example:
        >>> class Gain(nn.Module):
        ...     def __init__(self, d):
        ...         super().__init__()
        ...         self.gain = nn.Parameter(torch.ones(d))
        ...
        ...     def forward(self, x):
        ...         return x * self.gain
        >>> def gain(module, call):
        ...     return {"gain": (call.x * call.g).flatten(1, -2).sum(1)}
        >>> import seng, torch
        >>> seng.layers.register(Gain, gain)
        >>> seng.testing.check_layer(lambda: Gain(3), lambda: torch.randn(4, 2, 3))
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise OptionError(
            "register()", "no type of modules", expected="a subclass of torch.nn.Module", got=module_type,
            fix="Pass the class itself",
        )  # fmt: skip
    if not callable(function):
        raise OptionError(
            "register()", "the function cannot be called", expected="a function of a module and a LayerCall",
            got=function, fix="Pass the function itself",
        )  # fmt: skip
    if parts is None:
        LAYERS[module_type] = Layer(function)
        return
    named = tuple(tuple(part) for part in parts)
    names = [name for part in named for name in part]
    if not names or len(names) > len(set(names)) or not all(isinstance(name, str) for name in names):
        raise OptionError(
            "register()", "parts do not name parameters once each", expected="tuples of different names", got=named,
            fix="Name each parameter once",
        )  # fmt: skip
    LAYERS[module_type] = Layer(function, lambda module: named)
