"""Hooks that record layer inputs and output gradients, on refresh steps only.

The gradient is taken by a tensor hook on the layer's output, which sees the value before an in-place
activation overwrites it. A record belongs to its graph: forward passes that are never followed by backward leave
nothing behind, and neither do passes that ask for gradients of inputs alone. A *micro-batch* is what one forward
phase and the backward passes through it contribute; recomputed forward passes of activation checkpointing run inside
backward and belong to the micro-batch that is open.

Only passes whose gradients are in ``.grad`` count. A gradient that was cleared since, or that ``torch.autograd.grad``
handed out, is kept apart as ``Use.loose`` for as long as its graph lives: a caller may still put it into ``.grad``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from .broadcast import SPENT, as_table
from .compiled import register, tap
from .errors import CaptureError
from .hooks import Hook, exporting, transformed
from .layers import LayerFunction
from .types import LayerIO, join_batches, join_uses


@dataclass(eq=False)
class Use:
    """One call of a layer: its input, and the gradient of its output once backward has passed.

    Args:
        x: The input.
        version: Version counter of the input when the layer read it.
        training: Mode of the module.
        wanted: Names of the module's parameters that required gradients.
        leaves: The autograd nodes that accumulate into these parameters; None where those are withheld.
        g: The output gradients that are in ``.grad``.
        loose: Those that were cleared, or taken by ``torch.autograd.grad``.
    """

    x: Tensor
    version: int
    training: bool
    wanted: tuple[str, ...]
    leaves: tuple[Node, ...] | None
    g: Tensor | None = None
    loose: Tensor | None = None

    def void(self) -> None:
        """Move what was recorded to what is not in ``.grad``."""
        if self.g is not None:
            self.loose = self.g if self.loose is None else self.loose + self.g
            self.g = None

    def end(self) -> None:
        """Let go of the tensors, and record nothing more: the graph's hooks keep the record while the loss lives."""
        self.x, self.g, self.loose, self.version = self.x.new_empty(0), None, None, SPENT


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

    def samples(self, counts: Sequence[int]) -> int:
        """Return the number of samples.

        Args:
            counts: Dimension 0 of the inputs of all layers, in the order of backward.
        """
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
    """

    call: Call
    uses: dict[str, list[Use]] = field(default_factory=dict)
    started: bool = False

    def __iter__(self) -> Any:
        return (use for uses in self.uses.values() for use in uses)


@dataclass(frozen=True)
class Watched:
    """A module whose calls are recorded.

    Args:
        name: Qualified name.
        module: The module.
        function: Its entry in the layer table.
        wanted: Names of its trainable parameters.
        family: What it has in common with the same layer of other members of a ModuleList, as experts are; or "".
    """

    name: str
    module: nn.Module
    function: LayerFunction
    wanted: tuple[str, ...]
    family: str = ""


@dataclass(frozen=True)
class Captured:
    """What the layers gave since the last step.

    Args:
        layers: By qualified module name.
        samples: Number of samples of all micro-batches; a layer that some did not use has fewer columns.
        refused: Why layers were left out, by name.
        loose: Whether there are gradients that were cleared, or taken by ``torch.autograd.grad``.
    """

    layers: dict[str, LayerIO]
    samples: int
    refused: Mapping[str, str] = field(default_factory=dict)
    loose: bool = False


class Capture:
    """Records for a set of modules; ``armed`` decides whether calls are recorded at all.

    Args:
        watched: The modules.
        withheld: Names of modules whose parameters are kept out of backward while armed.
        model: The model they belong to, whose input tells the batch size.
        witnesses: Parameters whose ``.grad`` tells whether the gradients of withheld modules were cleared.
    """

    def __init__(
        self,
        watched: Iterable[Watched],
        withheld: frozenset[str] = frozenset(),
        model: nn.Module | None = None,
        witnesses: Sequence[nn.Parameter] = (),
    ):
        self.armed = True
        self._watched: dict[str, Watched] = {}
        self._batches: list[MicroBatch] = []
        self._open: MicroBatch | None = None
        self._call = Call()
        self._in_backward = False
        self._refused: dict[str, str] = {}
        self._handles: dict[str, list[Any]] = {}
        self._held_back: dict[str, list[nn.Parameter]] = {}
        self._withheld, self._witnesses = withheld, list(witnesses)
        self._compiled: dict[int, tuple[MicroBatch, str, Use]] = {}
        self._numbers: dict[str, int] = {}  # by which compiled graphs know the layers
        self._by_number: dict[int, Watched] = {}
        self._key = register(self)
        if model is not None:
            before, after = Hook(self._note_given, self), Hook(self._note_returned, self)
            self._handles[""] = [
                model.register_forward_pre_hook(before, with_kwargs=True),
                model.register_forward_hook(after),
            ]
        self.watch(watched)

    def watch(self, watched: Iterable[Watched]) -> None:
        """Place hooks on modules that have none yet, and remove those of modules no longer named."""
        entries = {entry.name: entry for entry in watched}
        for name, old in self._watched.items():
            if name not in entries or entries[name].module is not old.module:
                self._release(name)
                self._refused.pop(name, None)
        for name, entry in entries.items():
            self._by_number[self._numbers.setdefault(name, len(self._numbers))] = entry
            if f"module {name}" not in self._handles:
                self._place(entry)
        self._watched = entries

    def _place(self, entry: Watched) -> None:
        after = Hook(partial(self._after, entry.name), self)
        # first of all hooks: fully_shard's lets the whole parameters go
        handles = [entry.module.register_forward_hook(after, with_kwargs=True, prepend=True)]
        if entry.name in self._withheld:
            before = Hook(partial(self._withhold, entry), self)
            restore = Hook(partial(self._restore, entry.name))
            handles += [
                entry.module.register_forward_pre_hook(before),
                entry.module.register_forward_hook(restore, always_call=True),
            ]
        self._handles[f"module {entry.name}"] = handles

    def _release(self, name: str) -> None:
        for handle in self._handles.pop(f"module {name}", ()):
            handle.remove()

    def close(self) -> None:
        """Remove the hooks and forget what they recorded; graphs that are still alive record nothing more."""
        self.armed = False
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded and not yet collected, but for what living graphs hold."""
        for batch in self._batches:
            for use in batch:
                use.void()
        self._batches.clear()
        self._compiled.clear()
        self._open, self._in_backward, self._call = None, False, Call()

    @property
    def holds_records(self) -> bool:
        """Whether a backward pass was recorded and not yet collected."""
        return any(use.g is not None or use.loose is not None for batch in self._batches for use in batch)

    # -- forward --------------------------------------------------------------------------------------------------

    def _note_given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        shapes = _shapes((args, kwargs))
        given = [shape[0] for shape in shapes]
        if self._open is not None and self._open.call.given[:1] != given[:1]:  # other samples than those before
            self._open = None
        self._call = Call(given, shapes[0][1] if shapes and len(shapes[0]) > 1 else None)

    def _note_returned(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._call.returned = [shape[0] for shape in _shapes(output)]

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if exporting():
            return None
        if torch.compiler.is_compiling() and name not in self._withheld:
            return self._tap(name, module, args[0] if args else kwargs["input"], output)
        return self._record(name, module, args, kwargs, output)

    def _tap(self, name: str, module: nn.Module, x: Tensor, output: Any) -> Any:
        """Let a compiled graph record the call when it runs."""
        if not (torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad):
            return None
        return tap(output, x.detach(), self._key, self._numbers[name], module.training)[0]

    def record_compiled(self, layer: int, x: Tensor, training: bool) -> int:
        """Take the input of a layer's call while a compiled graph runs; return the call's number."""
        entry = self._by_number[layer]
        wanted = self._wanted(entry.name, entry.module)
        if not self.armed or not wanted:
            return -1
        self._enter_phase()
        call = len(self._compiled)
        self._compiled[call] = (self._batch(), entry.name, Use(x, x._version, training, wanted, None))
        return call

    def receive_compiled(self, call: int, grad: Tensor) -> None:
        """Take the gradient of the output of a call while a compiled graph runs backward."""
        if call in self._compiled:
            batch, name, use = self._compiled[call]
            self._receive(batch, name, use, grad)

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if transformed() or module is not self._watched[name].module:  # a copy of the model took the hooks along
            return None
        self._enter_phase()
        if not (torch.is_grad_enabled() and isinstance(output, Tensor)):
            return None
        withheld = bool(self._held_back.get(name))
        if not output.requires_grad:
            if not withheld:
                return None
            output = _Source.apply(output, torch.empty(0, requires_grad=True))
        wanted = self._wanted(name, module)
        if not wanted:
            return None
        batch, x = self._batch(), (args[0] if args else kwargs["input"]).detach()
        if torch.is_autocast_enabled(x.device.type):  # autograd saves a cast copy, and lets the original change
            x = x.clone()
        leaves = None if withheld else self._leaves(module, wanted)
        use = Use(x, x._version, module.training, wanted, leaves)
        output, source = _hookable(output)
        shape = output.shape
        source.register_hook(lambda grad: self._receive(batch, name, use, grad.reshape(shape)))
        if isinstance(module, nn.Embedding):
            return as_table(output, use, batch.call.given, partial(self._receive, batch, name))
        return output

    def _enter_phase(self) -> None:
        """End a micro-batch that backward has reached, unless this call is recomputed inside backward."""
        if torch._C._current_graph_task_id() != -1:
            self._begin_pass()
            return
        self._in_backward = False
        if self._open is not None and self._open.started:
            self._open = None

    def _batch(self) -> MicroBatch:
        """Return the micro-batch that is open, or begin one."""
        if self._open is None:
            self._open = MicroBatch(self._call)
        return self._open

    def _wanted(self, name: str, module: nn.Module) -> tuple[str, ...]:
        held = self._held_back.get(name, ())
        own = ((key, getattr(module, key, None)) for key in ("weight", "bias"))  # tensors, under functional_call
        return tuple(
            key
            for key, p in own
            if isinstance(p, Tensor)
            and p.numel()
            and key in module._parameters
            and (p.requires_grad or any(p is q for q in held))
        )

    def _leaves(self, module: nn.Module, wanted: tuple[str, ...]) -> tuple[Node, ...]:
        return tuple(get_gradient_edge(getattr(module, key)).node for key in wanted)

    def _withhold(self, entry: Watched, module: nn.Module, args: Any) -> None:
        """Let a module compute with parameters that require no gradient, for the time of its call."""
        dual = torch.autograd.forward_ad._current_level >= 0
        if module is entry.module and torch.is_grad_enabled() and not dual and not transformed():
            held = (module._parameters.get(key) for key in entry.wanted)
            own = [p for p in held if isinstance(p, nn.Parameter) and p.requires_grad]  # no tensors of functional_call
            self._held_back[entry.name] = own
            for parameter in own:
                parameter.requires_grad_(False)

    def _restore(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        for parameter in self._held_back.pop(name, ()):
            parameter.requires_grad_(True)

    # -- backward -------------------------------------------------------------------------------------------------

    def _receive(self, batch: MicroBatch, name: str, use: Use, grad: Tensor) -> None:
        if not self.armed or grad.numel() == 0 or use.version == SPENT:
            return
        if torch._C._functorch.is_legacy_batchedtensor(grad):  # type: ignore[attr-defined]  # many rows of a Jacobian
            return
        accumulates = _accumulates(use.leaves)
        if accumulates is None:
            return
        self._begin_pass()
        batch.started = True
        if not any(batch is known for known in self._batches):
            self._batches.append(batch)
        if not any(use is known for known in batch.uses.setdefault(name, [])):
            batch.uses[name].append(use)
        kind = "g" if accumulates else "loose"
        old, grad = getattr(use, kind), grad.detach()
        setattr(use, kind, grad if old is None else old + grad)

    def _begin_pass(self) -> None:
        """At the start of a backward pass, void what was recorded before the gradients were cleared."""
        if self._in_backward:
            return
        self._in_backward = True
        torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)
        if not any(use.g is not None for batch in self._batches for use in batch):
            return
        gone = {name for name, entry in self._watched.items() if self._cleared(entry)}
        for batch in self._batches:
            for name in gone & batch.uses.keys():
                for use in batch.uses[name]:
                    use.void()

    def _end_pass(self) -> None:
        self._in_backward = False

    def _cleared(self, entry: Watched) -> bool:
        """Return whether a module's ``.grad`` was cleared, to None or to zeros, since something was captured."""
        own: Iterable[Any] = self._witnesses
        if entry.name not in self._withheld:
            own = [p for p in entry.module._parameters.values() if p is not None]
        own = [p for p in own if p.requires_grad]
        if not own or any(hasattr(p, "device_mesh") for p in own):  # sharded gradients come later
            return False
        grads = [p.grad for p in own if p.grad is not None]
        if not grads:
            return True
        uses = [use for batch in self._batches for use in batch.uses.get(entry.name, ()) if use.g is not None]
        return bool(uses) and not any(_any(g) for g in grads) and any(_any(use.g) for use in uses)

    # -- what a step takes ----------------------------------------------------------------------------------------

    def collect(self, loose: bool = False) -> Captured:
        """Return what each layer gave, micro-batches joined.

        Records end as they are read, unless there are loose ones: then a call with them may follow, until ``release``.

        Args:
            loose: Whether gradients count that were cleared, or taken by ``torch.autograd.grad``. They do where there
                are no others.

        Raises:
            CaptureError: A layer's input was overwritten after the layer had read it.
        """
        every = [use for batch in self._batches for use in batch]
        extra = any(use.loose is not None for use in every)
        loose = extra and (loose or all(use.g is None for use in every))
        joined: dict[str, list[LayerIO]] = {}
        samples = 0
        for batch in self._batches:
            layers, size = self._layers(batch, loose, once=not extra)
            samples += size
            for name, io in layers.items():
                joined.setdefault(name, []).append(io)
        layers = {name: join_batches(ios) for name, ios in joined.items() if name not in self._refused}
        return Captured(layers, samples, dict(self._refused), extra and not loose)

    def release(self) -> None:
        """Forget what was collected."""
        for batch in self._batches:
            for use in batch:
                use.end()
        self.clear()

    def _layers(self, batch: MicroBatch, loose: bool, once: bool) -> tuple[dict[str, LayerIO], int]:
        """Return what the layers gave in one micro-batch, and its number of samples; ``once``: records end."""
        found: dict[str, list[LayerIO]] = {}
        for name, uses in batch.uses.items():
            entry = self._watched.get(name)
            taken = [(use, g) for use in uses if (g := _gradient(use, loose)) is not None]
            if entry is not None and taken and all(use.wanted == entry.wanted for use, _ in taken):
                found[name] = [self._io(entry, *taken.pop(0), once) for _ in range(len(taken))]
        size = batch.call.samples([io.n for ios in found.values() for io in ios])
        for name, ios in found.items():
            odd = next((io.n for io in ios if io.n != size), None)
            if odd is not None:
                self._refused[name] = f"dimension 0 of its input has {odd} entries where the batch has {size} samples"
        odd_families = {self._watched[name].family for name in self._refused} - {""}
        for name in found.keys() - self._refused.keys():
            if self._watched[name].family in odd_families:  # sizes that agree by accident, as those of experts may
                self._refused[name] = "dimension 0 of the inputs of layers like it is not the batch"
        return {name: join_uses(ios) for name, ios in found.items() if name not in self._refused}, size

    def _io(self, entry: Watched, use: Use, g: Tensor, once: bool) -> LayerIO:
        if use.x._version != use.version and "weight" in entry.wanted:  # gradients of a bias need no input
            raise CaptureError(
                "step()", "a layer's input was modified in place after the layer had read it",
                expected=f"version {use.version}", got=use.x._version, layer=entry.name,
                fix="Make that operation out of place, or exclude the layer",
            )  # fmt: skip
        io = entry.function(entry.module, use.x, g, entry.wanted, use.training)
        if once:
            use.end()
        return io


class _Source(torch.autograd.Function):
    """Make a tensor part of the graph, so that its gradient is computed and stops there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None


def _accumulates(leaves: tuple[Node, ...] | None) -> bool | None:
    """Return whether the running pass adds to ``.grad``: False where a caller gets the gradients, None for neither."""
    if leaves is None:
        return True
    try:
        return True if any(torch._C._will_engine_execute_node(leaf) for leaf in leaves) else None
    except RuntimeError:  # torch.autograd.grad was asked for that very parameter
        return False


def _gradient(use: Use, loose: bool) -> Tensor | None:
    if not loose or use.loose is None:
        return use.g
    return use.loose if use.g is None else use.g + use.loose


def _any(x: Tensor | None) -> bool:
    return x is not None and bool((x.coalesce().values() if x.is_sparse else x).any())


def _shapes(value: Any) -> list[torch.Size]:
    """Return the shapes of the tensors in a nested structure, without those of scalars."""
    return [x.shape for x in tree_leaves(value) if isinstance(x, Tensor) and x.dim()]


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
