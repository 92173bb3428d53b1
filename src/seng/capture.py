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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from .broadcast import as_broadcast, as_table
from .compiled import record, register, tensors_of, watch
from .errors import CaptureError
from .hooks import Hook, exporting, transformed
from .layers import Bare, Layer, Names, RandomState, UnsupportedCall, gradients_of, never, parameter_of
from .per_sample import LayerGradients, join_batches, join_uses
from .records import Call, Given, MicroBatch, Use, foreign, hookable, mapped, shapes_of, taken
from .subsets import Subset, chosen, counts_drawn


@dataclass(frozen=True)
class Watched:
    """A module whose calls are recorded.

    Args:
        name: Qualified name.
        module: The module.
        layer: Its entry in the layer table.
        parts: Names of its trainable parameters, those whose gradients come together as one tuple.
        family: What it has in common with the same layer of other members of a ModuleList, as experts are; or "".
    """

    name: str
    module: nn.Module
    layer: Layer
    parts: tuple[Names, ...]
    family: str = ""

    @property
    def wanted(self) -> Names:
        """Names of all its trainable parameters."""
        return tuple(name for part in self.parts for name in part)

    def key(self, part: Names) -> str:
        """Return the name of a part: the module's, where it is the only one."""
        if len(self.layer.parts(self.module)) == 1:
            return self.name
        return f"{self.name}.{part[0]}" if self.name else part[0]


@dataclass(frozen=True)
class Captured:
    """What the layers gave since the last step.

    Args:
        layers: By name of the part, as ``Watched.key`` gives it.
        samples: Number of samples of all micro-batches; a layer that some did not use has fewer columns.
        whole: The same of all samples of the batch, for layers whose samples were all recorded.
        batch: Number of samples of the batch, all of them in ``layers`` unless some were drawn.
        refused: Why layers were left out, by name.
        loose: Whether there are gradients that were cleared, or taken by ``torch.autograd.grad``.
    """

    layers: dict[str, LayerGradients]
    samples: int
    whole: Mapping[str, LayerGradients]
    batch: int
    refused: Mapping[str, str] = field(default_factory=dict)
    loose: bool = False


class Capture:
    """Records for a set of modules; ``armed`` decides whether calls are recorded at all, ``subset`` of which samples.

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
        self.subset: Subset | None = None
        self._watched: dict[str, Watched] = {}
        self._batches: list[MicroBatch] = []
        self._open: MicroBatch | None = None
        self._call = Call()
        self._in_backward = False
        self._refused: dict[str, str] = {}
        self._handles: dict[str, list[Any]] = {}
        self._held_back: dict[str, list[nn.Parameter]] = {}
        self._lent: dict[str, nn.Parameter] = {}  # bare parameters whose modules are being called
        self._random: dict[str, Any] = {}  # states of random generators, of layers that are being called
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
        if isinstance(entry.layer.function, Bare):
            lend, take_back = Hook(partial(self._lend, entry), self), Hook(partial(self._take_back, entry))
            self._handles[f"module {entry.name}"] = [
                entry.module.register_forward_pre_hook(lend),
                entry.module.register_forward_hook(take_back, always_call=True),
            ]
            return
        after = Hook(partial(self._after, entry.name), self)
        # first of all hooks: fully_shard's lets the whole parameters go
        handles = [entry.module.register_forward_hook(after, with_kwargs=True, prepend=True)]
        if entry.layer.draws is not never:
            random = Hook(partial(self._note_random, entry), self)
            handles.append(entry.module.register_forward_pre_hook(random, with_kwargs=True))
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
        return any(use.grads or use.loose for batch in self._batches for use in batch)

    # -- forward --------------------------------------------------------------------------------------------------

    def _note_given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        shapes = shapes_of((args, kwargs))
        given = [shape[0] for shape in shapes]
        if self._open is not None and self._open.call.given[:1] != given[:1]:  # other samples than those before
            self._open = None
        self._call = Call(given, shapes[0][1] if shapes and len(shapes[0]) > 1 else None)

    def _note_returned(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._call.returned = [shape[0] for shape in shapes_of(output)]

    def _lend(self, entry: Watched, module: nn.Module, args: Any) -> None:
        """Let a bare parameter watch what broadcasts it, for the time of its module's call."""
        if torch.compiler.is_compiling() or exporting() or transformed() or not torch.is_grad_enabled():
            return
        wanted = self._wanted(entry)
        parameter = module._parameters.get(wanted[0]) if wanted and module is entry.module else None
        if not isinstance(parameter, nn.Parameter):  # a call within a call
            return
        self._enter_phase()
        batch = self._batch()
        leaves = self._leaves(module, wanted)

        def take(copies: Tensor) -> None:
            use = Use((), {}, (), module.training, wanted, leaves)
            copies.register_hook(lambda grad: self._receive(batch, entry.name, use, 0, grad))

        if batch.call.given:
            self._lent[entry.name] = parameter
            module._parameters[wanted[0]] = as_broadcast(parameter, batch.call.given[0], take)  # type: ignore[assignment]

    def _take_back(self, entry: Watched, module: nn.Module, args: Any, output: Any) -> None:
        if module is entry.module and entry.name in self._lent:
            parameter = self._lent.pop(entry.name)
            for part in entry.parts:
                module._parameters[part[0]] = parameter

    def _note_random(self, entry: Watched, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and torch.is_grad_enabled() and entry.layer.draws(module):
            self._random[entry.name] = RandomState.before((args, kwargs))

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if exporting():
            return None
        if torch.compiler.is_compiling() and name not in self._withheld:
            return self._tap(name, module, args, kwargs, output)
        return self._record(name, module, args, kwargs, output)

    def _tap(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Let a compiled graph record the call when it runs."""
        several = isinstance(output, tuple)
        outputs = output if several else (output,)
        if not (torch.is_grad_enabled() and isinstance(outputs[0], Tensor) and outputs[0].requires_grad):
            return None
        tensors, places = tensors_of(args, kwargs)
        inputs = [x.detach() for x in tensors]
        call = record(inputs, places, self._key, self._numbers[name], module.training)
        watched = [
            watch(x, call, self._key, k) if isinstance(x, Tensor) and x.requires_grad else x
            for k, x in enumerate(outputs)
        ]
        return tuple(watched) if several else watched[0]

    def record_compiled(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> int:
        """Take the inputs of a layer's call while a compiled graph runs; return the call's number."""
        entry = self._by_number[layer]
        wanted = self._wanted(entry)
        if not self.armed or not wanted:
            return -1
        self._enter_phase()
        call = len(self._compiled)
        versions = tuple((x, x._version) for x in (*args, *kwargs.values()) if x is not None)
        self._compiled[call] = (self._batch(), entry.name, Use(args, kwargs, versions, training, wanted, None))
        return call

    def receive_compiled(self, call: int, output: int, grad: Tensor) -> None:
        """Take the gradient of an output of a call while a compiled graph runs backward."""
        if call in self._compiled:
            batch, name, use = self._compiled[call]
            use.outputs = max(use.outputs, output + 1)
            self._receive(batch, name, use, output, grad)

    # traced, version counters would be constants
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        entry = self._watched[name]
        if transformed() or module is not entry.module:  # a copy of the model took the hooks along
            return None
        self._enter_phase()
        if not torch.is_grad_enabled():
            return None
        withheld = bool(self._held_back.get(name))
        if withheld and isinstance(output, Tensor) and not output.requires_grad:
            output = _Source.apply(output, torch.empty(0, requires_grad=True))
        wanted = self._wanted(entry)
        if not wanted:
            return None
        batch, memo = self._batch(), {}
        inputs, named = taken(args, memo), taken(kwargs, memo)
        versions = tuple((x, x._version) for x in memo.values())
        leaves = None if withheld else self._leaves(module, wanted)
        use = Use(inputs, named, versions, module.training, wanted, leaves, self._random.pop(name, None), 0)
        output = mapped(output, partial(self._hooked, batch, name, use, isinstance(output, Tensor)))
        kind = foreign(output)
        if kind is not None:
            self._refused[name] = f"its output holds a {kind}, whose gradient is not seen"
        elif isinstance(module, nn.Embedding):
            return as_table(output, use, batch.call.given, lambda own, grad: self._receive(batch, name, own, 0, grad))
        return output

    def _hooked(self, batch: MicroBatch, name: str, use: Use, alone: bool, output: Tensor) -> Tensor:
        """Return an output of a call, its only one or not, to pass on; its gradient will be recorded."""
        place = use.outputs
        use.outputs += 1
        if not output.requires_grad:
            return output
        output, source = hookable(output, alone)
        shape = output.shape
        source.register_hook(lambda grad: self._receive(batch, name, use, place, grad.reshape(shape)))
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

    def _wanted(self, entry: Watched) -> Names:
        held = self._held_back.get(entry.name, ())
        own = [(key, parameter_of(entry.module, key)) for part in entry.layer.parts(entry.module) for key in part]
        return tuple(
            key for key, p in own if p is not None and p.numel() and (p.requires_grad or any(p is q for q in held))
        )

    def _leaves(self, module: nn.Module, wanted: tuple[str, ...]) -> tuple[Node, ...]:
        return tuple(get_gradient_edge(attrgetter(key)(module)).node for key in wanted)

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

    def _receive(self, batch: MicroBatch, name: str, use: Use, output: int, grad: Tensor) -> None:
        if not self.armed or grad.numel() == 0 or use.spent:
            return
        if torch._C._functorch.is_legacy_batchedtensor(grad):  # type: ignore[attr-defined]  # many rows of a Jacobian
            return
        accumulates = _accumulates(use.leaves)
        if accumulates is None:
            return
        self._begin_pass()
        batch.started = True
        if not any(batch is known for known in self._batches):
            batch.place = len(self._batches)
            self._batches.append(batch)
        if not any(use is known for known in batch.uses.setdefault(name, [])):
            batch.uses[name].append(use)
        index = None if self.subset is None else self._kept(self.subset, batch, name, use, grad)
        use.receive(output, grad.detach() if index is None else grad.index_select(0, index), loose=not accumulates)

    def _kept(self, subset: Subset, batch: MicroBatch, name: str, use: Use, grad: Tensor) -> Tensor | None:
        """Return the samples of a call that are kept, its input cut to them; None while all are."""
        entry = self._watched.get(name)
        if entry is None or name in subset.whole:
            return None
        begun = use.grads or use.loose
        known = batch.call.given[:1] == [len(grad)] if grad.dim() else False  # else it is cut once all is recorded
        if use.samples is None and (begun or not known or not use.has_samples(entry.layer, entry.module, grad)):
            return None
        index = subset.recorded(batch.place, len(grad))
        if index is None:
            return None
        index = index.to(grad.device)
        if use.samples is None:
            use.keep(index)
        use.reached = grad.any() if use.reached is None else use.reached | grad.any()
        return index

    def _begin_pass(self) -> None:
        """At the start of a backward pass, void what was recorded before the gradients were cleared."""
        if self._in_backward:
            return
        self._in_backward = True
        torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)
        if not any(use.grads for batch in self._batches for use in batch):
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
            own = [p for key in entry.wanted if (p := parameter_of(entry.module, key)) is not None]
        own = [p for p in own if p.requires_grad]
        if not own or any(hasattr(p, "device_mesh") for p in own):  # sharded gradients come later
            return False
        grads = [p.grad for p in own if p.grad is not None]
        if not grads:
            return True
        uses = [use for batch in self._batches for use in batch.uses.get(entry.name, ()) if use.grads]
        seen = [g for use in uses for g in (use.grads.values() if use.reached is None else (use.reached,))]
        return bool(seen) and not any(map(_any, grads)) and any(map(_any, seen))

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
        extra = any(use.loose for use in every)
        loose = extra and (loose or not any(use.grads for use in every))
        found = [self._layers(batch, loose, once=not extra) for batch in self._batches]
        sizes, subset = [size for _, size in found], self.subset
        counts = sizes if subset is None else counts_drawn(subset.samples, sizes)
        joined: dict[str, list[LayerGradients]] = {}
        whole: dict[str, list[LayerGradients]] = {}
        for batch, (given, size), count in zip(self._batches, found, counts, strict=True):
            for key, io in self._by_part(given, attrgetter("drawn")).items():
                joined.setdefault(key, []).append(subset.final(io, batch.place, size, count) if subset else io)
            for key, io in self._by_part(given, attrgetter("whole")).items() if subset else ():
                whole.setdefault(key, []).append(io)
        refused = {
            entry.key(part): self._refused[name]
            for name, entry in self._watched.items() if name in self._refused for part in entry.parts
        }  # fmt: skip
        layers = {key: join_batches(ios) for key, ios in joined.items() if key not in refused}
        known = {key: join_batches(whole[key]) for key in layers if len(whole.get(key, ())) == len(joined[key])}
        return Captured(layers, sum(counts), known if subset else layers, sum(sizes), refused, extra and not loose)

    def release(self) -> None:
        """Forget what was collected."""
        for batch in self._batches:
            for use in batch:
                use.end()
        self.clear()

    def _layers(self, batch: MicroBatch, loose: bool, once: bool) -> tuple[dict[str, list[Given]], int]:
        """Return what the layers gave in one micro-batch, and its number of samples; ``once``: records end."""
        found: dict[str, list[Given]] = {}
        for name, uses in batch.uses.items():
            entry = self._watched.get(name)
            taken = [(use, grads) for use in uses if (grads := use.gradients(loose)) is not None]
            if entry is not None and taken and all(use.wanted == entry.wanted for use, _ in taken):
                try:
                    found[name] = [self._given(batch, entry, *taken.pop(0), once) for _ in range(len(taken))]
                except UnsupportedCall as reason:
                    self._refused[name] = str(reason)
        counts = {name: [given.samples for given in gave] for name, gave in found.items()}
        second = {name for name in counts if not getattr(self._watched[name].module, "batch_first", True)}
        size = batch.call.samples(
            [n for name, own in counts.items() if name not in second for n in own],
            [n for name in counts if name in second for n in counts[name]],
        )
        for name, own in counts.items():
            odd = next((n for n in own if n != size), None)
            if odd is not None:
                self._refused[name] = f"dimension 0 of its input has {odd} entries where the batch has {size} samples"
        odd_families = {self._watched[name].family for name in self._refused} - {""}
        for name in found.keys() - self._refused.keys():
            if self._watched[name].family in odd_families:  # sizes that agree by accident, as those of experts may
                self._refused[name] = "dimension 0 of the inputs of layers like it is not the batch"
        return {name: gave for name, gave in found.items() if name not in self._refused}, size

    def _by_part(
        self, given: Mapping[str, Sequence[Given]], of: Callable[[Given], dict[Names, LayerGradients]]
    ) -> dict[str, LayerGradients]:
        """Return what the uses of each layer add up to, by name of the part."""
        found: dict[str, LayerGradients] = {}
        for name, own in given.items():
            uses = [of(call) for call in own]
            for part in uses[0] if all(uses) else ():
                found[self._watched[name].key(part)] = join_uses([io[part] for io in uses])
        return found

    def _given(
        self, batch: MicroBatch, entry: Watched, use: Use, grads: tuple[Tensor | None, ...], once: bool
    ) -> Given:
        """Return what one call gave; what its hook has not cut to the samples that may be drawn is cut here."""
        if self.subset is None or use.samples is not None:
            found = self._gradients(entry, use, grads)
            given = Given(found, {}, use.samples or next(iter(found.values())).n)
        else:
            given = self._cut(self.subset, batch, entry, use, grads)
        if once:
            use.end()
        return given

    def _cut(
        self, subset: Subset, batch: MicroBatch, entry: Watched, use: Use, grads: tuple[Tensor | None, ...]
    ) -> Given:
        grad = next(own for own in grads if own is not None)
        separate = use.has_samples(entry.layer, entry.module, grad)
        whole = {} if separate and entry.name not in subset.whole else self._gradients(entry, use, grads)
        samples = len(grad) if separate else next(iter(whole.values())).n
        index = subset.recorded(batch.place, samples)
        if index is None:
            drawn = whole or self._gradients(entry, use, grads)
        elif separate:  # the same bits as from what a hook has cut
            index = index.to(grad.device)
            drawn = self._gradients(entry, use.of_some(index), (grad.index_select(0, index),))
        else:
            drawn = {part: chosen(io, index) for part, io in whole.items()}
        return Given(drawn, whole if entry.name in subset.whole else {}, samples)

    def _gradients(self, entry: Watched, use: Use, grads: tuple[Tensor | None, ...]) -> dict[Names, LayerGradients]:
        if use.overwritten and set(entry.wanted) != {"bias"}:  # gradients of a bias need no input
            version = next(version for x, version in use.versions if x._version != version)
            raise CaptureError(
                "step()", "a layer's input was modified in place after the layer had read it",
                expected=f"version {version}", got=next(x._version for x, v in use.versions if x._version != v),
                layer=entry.name, fix="Make that operation out of place, or exclude the layer",
            )  # fmt: skip
        return gradients_of(entry.layer, entry.module, use.call(grads), entry.parts, entry.name)


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


def _any(x: Tensor) -> bool:
    return bool((x.coalesce().values() if x.is_sparse else x).any())
