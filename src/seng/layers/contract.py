"""What a layer is to the library: from one call's inputs and output gradients to per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from ..errors import CaptureError
from ..per_sample import LayerGradients, Rows

Names = tuple[str, ...]  # of parameters, as module.get_parameter() takes them
Gradients = Mapping[Any, Any]  # str -> Tensor [n, *parameter.shape], or Names -> LayerGradients
Parts = tuple[Names, ...]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer, as its function sees it.

    Args:
        args: Positional inputs; tensors are detached.
        kwargs: Keyword inputs, likewise.
        grads: Gradient of each tensor that the layer returned, in order; None where none reached it.
        wanted: Names of the parameters whose gradients are wanted.
        training: Mode of the module during the call.
        random: State of the random generators before the call, for layers that draw; else None.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grads: tuple[Tensor | None, ...]
    wanted: Names
    training: bool = True
    random: Any = None

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def g(self) -> Tensor:
        """The gradient of the first output."""
        assert self.grads[0] is not None
        return self.grads[0]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an input, wherever it was given."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


LayerFunction = Callable[[nn.Module, LayerCall], Gradients]


class UnsupportedCall(Exception):
    """A layer's function cannot give the gradients of a call; its parameters pass through, with this reason."""


def own_parameters(module: nn.Module) -> Parts:
    """Return the names of the module's own parameters, as one part."""
    return (tuple(module._parameters),)


def supported(module: nn.Module) -> str | None:
    """Return None: every module of the type is supported."""
    return None


def unknown(module: nn.Module) -> int | None:
    """Return None: calls cannot be cut to some of their samples."""
    return None


def never(module: nn.Module) -> bool:
    """Return False: no module of the type draws."""
    return False


@dataclass(frozen=True)
class Layer:
    """How the layers of one type give their per-sample gradients.

    Args:
        function: From the module and a call to ``{name: per-sample gradients}``.
        parts: The names of the parameters, those whose gradients come together as one tuple.
        unsupported: Why a module of the type passes through, or None.
        joint: Whether the parts are preconditioned together, as one block.
        draws: Whether a module draws random numbers in its call, which the function has to draw again.
        reads: Whether the function reads the parameters' values, which have to be whole then.
        batched: Number of dimensions from which on an input has its samples in dimension 0, where the layer has one
            input and treats each sample by itself; None: calls cannot be cut to some of their samples.
    """

    function: LayerFunction
    parts: Callable[[nn.Module], Parts] = field(default=own_parameters)
    unsupported: Callable[[nn.Module], str | None] = field(default=supported)
    joint: bool = False
    draws: Callable[[nn.Module], bool] = field(default=never)
    reads: bool = False
    batched: Callable[[nn.Module], int | None] = field(default=unknown)


def parameter_of(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter by its name within the module; None where it has none.

    Under ``torch.func.functional_call`` it is the tensor that takes the parameter's place.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    return getattr(owner, leaf) if owner._parameters.get(leaf) is not None else None


def gradients_of(
    layer: Layer, module: nn.Module, call: LayerCall, parts: Parts, name: str
) -> dict[Names, LayerGradients]:
    """Return what a layer's function gives for one call, one entry a part.

    Args:
        layer: The layer.
        module: The module.
        call: The call.
        parts: The wanted parameters' names, those of one part together.
        name: Qualified name of the module.

    Raises:
        CaptureError: The function leaves a parameter out, or its gradients have another shape than the parameter.
        UnsupportedCall: The function cannot give the gradients of this call.
    """
    given = layer.function(module, call)
    found: dict[Names, LayerGradients] = {}
    for part in parts:
        if part not in given and not all(key in given for key in part):
            raise CaptureError(
                "step()", "a layer's function leaves out a parameter", expected=f"per-sample gradients of {part}",
                got=tuple(given), layer=name, fix="Return them, by the parameters' names",
            )  # fmt: skip
        io: LayerGradients = (
            given[part] if part in given else Rows.of(tuple(given[key].reshape(len(given[key]), -1) for key in part))
        )
        sizes = [attrgetter(key)(module).numel() for key in part]
        if [rows * columns for rows, columns in io.shapes] != sizes:
            raise CaptureError(
                "step()", "a layer's per-sample gradients are not of the shape of its parameters",
                expected=f"{sizes} elements a sample of {part}", got=[r * c for r, c in io.shapes], layer=name,
                fix="Return tensors [n, *parameter.shape]",
            )  # fmt: skip
        found[part] = io
    if len({io.n for io in found.values()}) > 1:
        raise CaptureError(
            "step()", "a layer's per-sample gradients have different numbers of samples", expected="the same of all",
            got={part: io.n for part, io in found.items()}, layer=name, fix="Return tensors [n, *parameter.shape]",
        )  # fmt: skip
    return found
