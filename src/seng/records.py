"""What hooks record of one forward phase: calls of layers, and the sizes of what the model was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from .layers import Layer, LayerCall, Names
from .per_sample import LayerGradients

Grads = dict[int, Tensor]  # by place of the output


@dataclass(eq=False)
class Use:
    """One call of a layer: its inputs, and the gradients of its outputs once backward has passed.

    Args:
        args: Positional inputs; tensors are detached.
        kwargs: Keyword inputs, likewise.
        versions: Each input tensor, with its version counter when the layer read it.
        training: Mode of the module.
        wanted: Names of the module's parameters that required gradients.
        leaves: The autograd nodes that accumulate into these parameters; None where those are withheld.
        random: State of the random generators before the call, for layers that draw.
        outputs: Number of tensors that the layer returned.
        grads: The output gradients that are in ``.grad``.
        loose: Those that were cleared, or taken by ``torch.autograd.grad``.
        spent: Whether nothing more is recorded.
        samples: Number of samples of the call, where only some of them are kept.
        reached: Whether a gradient of any sample was other than zero, 0-d, where only some are kept.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    versions: tuple[tuple[Tensor, int], ...]
    training: bool
    wanted: Names
    leaves: tuple[Node, ...] | None
    random: Any = None
    outputs: int = 1
    grads: Grads = field(default_factory=dict)
    loose: Grads = field(default_factory=dict)
    spent: bool = False
    samples: int | None = None
    reached: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def overwritten(self) -> bool:
        """Whether an input was modified in place after the layer had read it."""
        return any(x._version != version for x, version in self.versions)

    def receive(self, output: int, grad: Tensor, loose: bool) -> None:
        """Add the gradient of an output."""
        held = self.loose if loose else self.grads
        held[output] = held[output] + grad if output in held else grad

    def gradients(self, loose: bool) -> tuple[Tensor | None, ...] | None:
        """Return the gradient of each output, the loose ones added where asked for; None where there are none."""
        found = dict(self.grads)
        for output, grad in self.loose.items() if loose else ():
            found[output] = found[output] + grad if output in found else grad
        return tuple(map(found.get, range(self.outputs))) if found else None

    def call(self, grads: tuple[Tensor | None, ...]) -> LayerCall:
        """Return the call as the layer's function sees it."""
        return LayerCall(self.args, self.kwargs, grads, self.wanted, self.training, self.random)

    def reading(self, x: Tensor) -> Use:
        """Return the record of a call with one other input, without gradients so far."""
        return replace(self, args=(x,), kwargs={}, versions=((x, x._version),), grads={}, loose={})

    def has_samples(self, layer: Layer, module: nn.Module, grad: Tensor) -> bool:
        """Return whether the call can be cut to some of its samples: they are in dimension 0 of its input and output.

        Args:
            layer: The layer.
            module: The module.
            grad: The gradient of its output.
        """
        least = layer.batched(module)
        if least is None or self.overwritten or not (self.args or self.kwargs):
            return False
        return self.x.dim() >= least and grad.dim() > 0 and len(grad) == len(self.x)

    def keep(self, index: Tensor) -> None:
        """Keep some samples of the input alone."""
        self.samples, self.versions = len(self.x), ()
        self.args = tuple(_some(x, index) for x in self.args)
        self.kwargs = {key: _some(x, index) for key, x in self.kwargs.items()}

    def of_some(self, index: Tensor) -> Use:
        """Return the record of some samples, without gradients."""
        some = replace(self, grads={}, loose={})
        some.keep(index)
        return some

    def void(self) -> None:
        """Move what was recorded to what is not in ``.grad``."""
        for output, grad in self.grads.items():
            self.receive(output, grad, loose=True)
        self.grads = {}

    def end(self) -> None:
        """Let go of the tensors, and record nothing more: the graph's hooks keep the record while the loss lives."""
        self.args, self.kwargs, self.versions, self.random = (), {}, (), None
        self.grads, self.loose, self.spent = {}, {}, True


@dataclass(frozen=True)
class Given:
    """What one call of a layer gave.

    Args:
        drawn: Of the samples that may be drawn, by part.
        whole: Of all samples, where these are to be compared with ``.grad``; else empty.
        samples: Number of samples of the call.
    """

    drawn: dict[Names, LayerGradients]
    whole: dict[Names, LayerGradients]
    samples: int


@dataclass
class Call:
    """Sizes of the tensors that the model as a whole was given and returned.

    Args:
        given: Dimension 0 of each.
        second: Dimension 1 of the first.
        returned: Dimension 0 of each output.
    """

    given: list[int] = field(default_factory=list)
    second: int | None = None
    returned: list[int] = field(default_factory=list)

    def samples(self, counts: Sequence[int], second: Sequence[int] = ()) -> int:
        """Return the number of samples.

        Args:
            counts: Dimension 0 of the inputs of all layers, in the order of backward.
            second: Dimension 1 of those that have their samples there: they tell where nothing else does.
        """
        if not set(counts) & {*self.given} and len(set(second)) == 1 and second[0] in (*self.given[:1], self.second):
            return second[0]
        counts = counts or second
        if not counts or set(counts) == {1}:
            return len(counts[:1])
        last, known = counts[0], [size for size in self.given if size in counts]
        if not known:  # where the model was called in parts the last layer counts; else no layer has the samples
            return self.given[0] if self.given else last
        given = max(known, key=known.count)
        pooled = self.returned == [last] and last < given
        return last if last == self.second or pooled else given


@dataclass(eq=False)
class MicroBatch:
    """Uses of each layer in one forward phase, in the order in which backward reached them.

    Args:
        call: What the model was given and returned, where it was called as a whole.
        uses: By layer.
        started: Whether backward has reached it.
        place: Among the micro-batches of the step, in the order in which backward reached them.
    """

    call: Call
    uses: dict[str, list[Use]] = field(default_factory=dict)
    started: bool = False
    place: int = 0

    def __iter__(self) -> Iterator[Use]:
        return (use for uses in self.uses.values() for use in uses)


def _some(x: Any, index: Tensor) -> Any:
    return x.index_select(0, index) if isinstance(x, Tensor) else x


def taken(value: Any, memo: dict[int, Tensor]) -> Any:
    """Return an input with its tensors detached; ``memo`` holds each once, by the identity of the tensor given."""
    if isinstance(value, Tensor):
        if id(value) not in memo:
            x = value.detach()
            cast = torch.is_autocast_enabled(x.device.type)  # autograd saves a cast copy, and lets the original change
            memo[id(value)] = x.clone() if cast else x
        return memo[id(value)]
    if type(value) in (tuple, list):
        return type(value)(taken(item, memo) for item in value)
    return {key: taken(item, memo) for key, item in value.items()} if type(value) is dict else value


def foreign(output: Any) -> str | None:
    """Return the type of something in a layer's output that ``mapped`` leaves alone, other than None; or None."""
    if output is None or isinstance(output, Tensor):
        return None
    if type(output) not in (tuple, list, dict):
        return type(output).__name__
    parts = output.values() if isinstance(output, dict) else output
    return next((kind for kind in map(foreign, parts) if kind is not None), None)


def mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return what a layer returned, with the tensors in tuples, lists and dicts changed, in order."""
    if isinstance(output, Tensor):
        return change(output)
    if type(output) in (tuple, list):
        return type(output)(mapped(item, change) for item in output)
    return {key: mapped(item, change) for key, item in output.items()} if type(output) is dict else output


def shapes_of(value: Any) -> list[torch.Size]:
    """Return the shapes of the tensors in a nested structure, without those of scalars."""
    return [x.shape for x in tree_leaves(value) if isinstance(x, Tensor) and x.dim()]


def hookable(output: Tensor, alone: bool) -> tuple[Tensor, Tensor]:
    """Return the output to pass on, and the tensor whose hook sees its gradient.

    An in-place operation on a view reroutes the gradient past the view, to its base: then the base is hooked, or,
    where the view is not the whole of it in order, a copy is passed on. So it is where the layer returns more than this
    output: the base may have a part in the others, and in its gradient.
    """
    if not output._is_view():
        return output, output
    base = output._base
    assert base is not None
    whole = alone and base.requires_grad and base.numel() == output.numel()
    if whole and base.is_contiguous() and output.is_contiguous():
        return output, base
    copy = output.clone()
    return copy, copy
