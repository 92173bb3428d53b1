"""Capture inside whole compiled graphs: operators that the compiler carries along without looking inside.

``record`` hands a layer's inputs to the capture when the graph runs. ``watch`` passes an output of the layer on; its
backward, ``receive``, hands the output's gradient over. All copy what they keep: a graph may use the memory of its
tensors again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """What takes inputs and gradients while a compiled graph runs."""

    def record_compiled(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> int:
        """Take the inputs of a layer's call; return the call's number."""
        ...

    def receive_compiled(self, call: int, output: int, grad: Tensor) -> None:
        """Take the gradient of an output of a call."""
        ...


RECORDERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(recorder: Recorder) -> int:
    """Return a number by which graphs know a recorder."""
    key = max(RECORDERS, default=0) + 1
    RECORDERS[key] = recorder
    return key


def tensors_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], str]:
    """Return the tensors among a call's inputs, each once, and the places where each belongs: "0,1 2 mask"."""
    tensors: list[Tensor] = []
    places: list[str] = []
    for place, value in (*((str(k), x) for k, x in enumerate(args)), *kwargs.items()):
        if not isinstance(value, Tensor):
            continue
        for k, known in enumerate(tensors):
            if known is value:
                places[k] += f",{place}"
                break
        else:
            tensors.append(value)
            places.append(place)
    return tensors, " ".join(places)


def inputs_of(tensors: Sequence[Tensor], places: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Undo ``tensors_of``: return positional inputs, None where there was no tensor, and keyword inputs."""
    named = {place: x for x, own in zip(tensors, places.split(), strict=True) for place in own.split(",")}
    count = 1 + max((int(place) for place in named if place.isdecimal()), default=-1)
    args = tuple(named.get(str(k)) for k in range(count))
    return args, {place: x for place, x in named.items() if not place.isdecimal()}


@torch.library.custom_op("seng::record", mutates_args=())
def record(tensors: Sequence[Tensor], places: str, recorder: int, layer: int, training: bool) -> Tensor:
    """Record a layer's call; return the call's number."""
    known = RECORDERS.get(recorder)
    args, kwargs = inputs_of([x.clone() for x in tensors], places)
    return torch.tensor(-1 if known is None else known.record_compiled(layer, args, kwargs, training))


@record.register_fake
def _(tensors: Sequence[Tensor], places: str, recorder: int, layer: int, training: bool) -> Tensor:
    return torch.empty((), dtype=torch.int64)


@torch.library.custom_op("seng::watch", mutates_args=())
def watch(output: Tensor, call: Tensor, recorder: int, place: int) -> Tensor:
    """Return an output of a call, whose gradient is recorded."""
    return output.clone()


@watch.register_fake
def _(output: Tensor, call: Tensor, recorder: int, place: int) -> Tensor:
    return output.clone()


@torch.library.custom_op("seng::receive", mutates_args=())
def receive(grad: Tensor, call: Tensor, recorder: int, place: int) -> Tensor:
    """Record the gradient of an output of a call; return it."""
    known = RECORDERS.get(recorder)
    if known is not None:
        known.receive_compiled(int(call), place, grad.clone())
    return grad.clone()


@receive.register_fake
def _(grad: Tensor, call: Tensor, recorder: int, place: int) -> Tensor:
    return grad.clone()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.recorder, ctx.place = inputs[2:]
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (call,) = ctx.saved_tensors
    return receive(grad.contiguous(), call, ctx.recorder, ctx.place), None, None, None


watch.register_autograd(_backward, setup_context=_keep)
