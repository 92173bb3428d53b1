"""Hooks that record layer inputs and output gradients, on refresh steps only.

The gradient is taken by a tensor hook on the layer's output, which sees the value before an in-place
activation overwrites it. A record belongs to its graph: forward passes that are never followed by backward leave
nothing behind, and neither do passes that ask for gradients of inputs alone. A *micro-batch* is what one forward
phase and the backward passes through it contribute; recomputed forward passes of activation checkpointing run inside
backward and belong to the micro-batch that is open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from .errors import BatchError, CaptureError
from .layers import LayerFunction
from .types import LayerIO, join_batches, join_uses


@dataclass
class Use:
    """One call of a layer: its input, and the gradient of its output once backward has passed.

    ``leaves`` are the autograd nodes that accumulate into the layer's parameters; None where those are withheld.
    """

    x: Tensor
    version: int
    training: bool
    leaves: tuple[Node, ...] | None
    g: Tensor | None = None


@dataclass
class MicroBatch:
    """Uses of each layer in one forward phase, in the order in which backward reached them."""

    uses: dict[str, list[Use]] = field(default_factory=dict)
    started: bool = False


@dataclass(frozen=True)
class Watched:
    """A module whose calls are recorded.

    Args:
        name: Qualified name.
        module: The module.
        function: Its entry in the layer table.
        wanted: Names of its trainable parameters.
    """

    name: str
    module: nn.Module
    function: LayerFunction
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Captured:
    """What the layers gave since the last step.

    Args:
        layers: By qualified module name.
        samples: Number of samples of all micro-batches; a layer that some did not use has fewer columns.
    """

    layers: dict[str, LayerIO]
    samples: int


class Capture:
    """Records for a set of modules; ``armed`` decides whether calls are recorded at all.

    Args:
        watched: The modules.
        grads_are_fresh: Tells whether ``.grad`` has been cleared, so that older records are void.
        withheld: Names of modules whose parameters are kept out of backward while armed.
    """

    def __init__(
        self, watched: list[Watched], grads_are_fresh: Callable[[], bool], withheld: frozenset[str] = frozenset()
    ):
        self.armed = True
        self._watched = {entry.name: entry for entry in watched}
        self._grads_are_fresh = grads_are_fresh
        self._batches: list[MicroBatch] = []
        self._open: MicroBatch | None = None
        self._handles = [
            # first of all hooks: fully_shard's lets the whole parameters go
            entry.module.register_forward_hook(self._hook(entry.name), with_kwargs=True, prepend=True)
            for entry in watched
        ]
        self._held_back: dict[str, list[nn.Parameter]] = {}
        for entry in watched:
            if entry.name in withheld:
                self._handles += self._withhold(entry)

    def close(self) -> None:
        """Remove the hooks and forget what they recorded; graphs that are still alive record nothing more."""
        self.armed = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded and not yet collected."""
        self._batches.clear()
        self._open = None

    @property
    def holds_records(self) -> bool:
        """Whether a backward pass was recorded and not yet collected."""
        return bool(self._batches)

    def has_gradients(self) -> bool:
        """Return whether anything but zeros was recorded and not yet collected."""
        uses = [use for batch in self._batches for uses in batch.uses.values() for use in uses]
        return any(use.g is not None and bool(use.g.any()) for use in uses)

    def _hook(self, name: str) -> Callable[..., None]:
        # the test of `armed` is all that a compiled graph keeps of an idle hook; an armed one breaks the graph
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return self._record(name, module, args, kwargs, output) if self.armed else None

        return hook

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module is not self._watched[name].module:  # a copy of the model took the hooks along
            return None
        inside_backward = torch._C._current_graph_task_id() != -1
        if self._open is not None and self._open.started and not inside_backward:
            self._open = None
        if not (torch.is_grad_enabled() and isinstance(output, Tensor)):
            return None
        withheld = bool(self._held_back.get(name))
        if not output.requires_grad:
            if not withheld:
                return None
            output = _Source.apply(output, torch.empty(0, requires_grad=True))
        if self._open is None:
            self._open = MicroBatch()
        batch, x = self._open, (args[0] if args else kwargs["input"]).detach()
        if torch.is_autocast_enabled(x.device.type):  # autograd saves a cast copy, and lets the original change
            x = x.clone()
        leaves = None if withheld else self._leaves(name, module)
        use = Use(x, x._version, module.training, leaves)
        output, source = _hookable(output)
        shape = output.shape
        source.register_hook(lambda grad: self._receive(batch, name, use, grad.reshape(shape)))
        return output

    def _leaves(self, name: str, module: nn.Module) -> tuple[Node, ...]:
        parameters = [getattr(module, key) for key in self._watched[name].wanted]  # tensors, under functional_call
        return tuple(get_gradient_edge(p).node for p in parameters if p.requires_grad)

    def _withhold(self, entry: Watched) -> list[RemovableHandle]:
        """Let a module compute with parameters that require no gradient, for the time of its call."""

        def before(module: nn.Module, args: Any) -> None:
            if module is entry.module and self.armed and torch.is_grad_enabled():
                held = (module._parameters.get(key) for key in entry.wanted)
                own = [p for p in held if p is not None and p.requires_grad]
                self._held_back[entry.name] = own
                for parameter in own:
                    parameter.requires_grad_(False)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            for parameter in self._held_back.pop(entry.name, ()):
                parameter.requires_grad_(True)

        register = entry.module.register_forward_hook
        return [entry.module.register_forward_pre_hook(before), register(after, always_call=True)]

    def _receive(self, batch: MicroBatch, name: str, use: Use, grad: Tensor) -> None:
        if not self.armed or grad.numel() == 0 or not _accumulates(use.leaves):
            return
        if not batch.started:
            if self._batches and self._grads_are_fresh():
                self._batches.clear()
            batch.started = True
            self._batches.append(batch)
        if use.g is None:
            batch.uses.setdefault(name, []).append(use)
            use.g = grad.detach()
        else:
            use.g = use.g + grad.detach()

    def collect(self) -> Captured:
        """Return what each layer gave since the last call, micro-batches joined, and forget it.

        Raises:
            CaptureError: A layer's input was overwritten after the layer had read it.
            BatchError: Layers, or uses of one layer, disagree about the number of samples.
        """
        batches, self._batches, self._open = self._batches, [], None
        joined: dict[str, list[LayerIO]] = {}
        samples = 0
        for batch in batches:
            layers = {name: self._join(name, uses) for name, uses in batch.uses.items()}
            samples += _require_one_count({name: io.n for name, io in layers.items()})
            for name, io in layers.items():
                joined.setdefault(name, []).append(io)
        return Captured({name: join_batches(parts) for name, parts in joined.items()}, samples)

    def _join(self, name: str, uses: list[Use]) -> LayerIO:
        entry, parts = self._watched[name], []
        for use in uses:
            if use.x._version != use.version and "weight" in entry.wanted:  # gradients of a bias need no input
                raise CaptureError(
                    "step()", "a layer's input was modified in place after the layer had read it",
                    expected=f"version {use.version}", got=use.x._version, layer=name,
                    fix="Make that operation out of place, or exclude the layer",
                )  # fmt: skip
            assert use.g is not None
            parts.append(entry.function(entry.module, use.x, use.g, entry.wanted, use.training))
            use.x, use.g = use.x.new_empty(0), None  # the graph's hooks keep the record for as long as the loss lives
        _require_one_count({f"{name} (use {k})": part.n for k, part in enumerate(parts)}, layer=name)
        return join_uses(parts)


class _Source(torch.autograd.Function):
    """Make a tensor part of the graph, so that its gradient is computed and stops there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None


def _accumulates(leaves: tuple[Node, ...] | None) -> bool:
    """Return whether the running backward pass reaches a parameter; gradients of inputs alone do not."""
    if leaves is None:
        return True
    try:
        return any(torch._C._will_engine_execute_node(leaf) for leaf in leaves)
    except RuntimeError:  # torch.autograd.grad was asked for that very parameter
        return True


def _hookable(output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output to pass on, and the tensor whose hook sees its gradient.

    An in-place operation on a view reroutes the gradient past the view, to its base: then the base is hooked, or,
    where the view is not the whole of it in order, a copy is passed on.
    """
    if not output._is_view():
        return output, output
    base = output._base
    assert base is not None
    whole = base.requires_grad and base.numel() == output.numel()
    if whole and base.is_contiguous() and output.is_contiguous():
        return output, base
    copy = output.clone()
    return copy, copy


def _require_one_count(counts: dict[str, int], layer: str | None = None) -> int:
    usual = max(set(counts.values()), key=list(counts.values()).count)
    odd = next((name for name, n in counts.items() if n != usual), None)
    if odd is None:
        return usual
    raise BatchError(
        "step()", "layers disagree about the number of samples", expected=f"{usual} samples in dimension 0",
        got=counts[odd], layer=layer or odd, fix="Keep samples in dimension 0, or exclude the layer",
    )  # fmt: skip
