"""Capture inside whole compiled graphs: two operators that the compiler carries along without looking inside.

``tap`` hands a layer's input to the capture when the graph runs, and passes the output on; its backward, ``receive``,
does the same with the output's gradient. Both copy what they pass on: a graph may use the memory of its tensors again.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """What takes inputs and gradients while a compiled graph runs."""

    def record_compiled(self, layer: int, x: Tensor, training: bool) -> int:
        """Take the input of a layer's call; return the call's number."""
        ...

    def receive_compiled(self, call: int, grad: Tensor) -> None:
        """Take the gradient of the output of a call."""
        ...


RECORDERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(recorder: Recorder) -> int:
    """Return a number by which graphs know a recorder."""
    key = max(RECORDERS, default=0) + 1
    RECORDERS[key] = recorder
    return key


@torch.library.custom_op("seng::tap", mutates_args=())
def tap(output: Tensor, x: Tensor, recorder: int, layer: int, training: bool) -> tuple[Tensor, Tensor]:
    """Record a layer's call; return its output, and the call's number."""
    known = RECORDERS.get(recorder)
    call = -1 if known is None else known.record_compiled(layer, x.clone(), training)
    return output.clone(), torch.tensor(call)


@tap.register_fake
def _(output: Tensor, x: Tensor, recorder: int, layer: int, training: bool) -> tuple[Tensor, Tensor]:
    return output.clone(), torch.empty((), dtype=torch.int64)


@torch.library.custom_op("seng::receive", mutates_args=())
def receive(grad: Tensor, call: Tensor, recorder: int) -> Tensor:
    """Record the gradient of the output of a call; return it."""
    known = RECORDERS.get(recorder)
    if known is not None:
        known.receive_compiled(int(call), grad.clone())
    return grad.clone()


@receive.register_fake
def _(grad: Tensor, call: Tensor, recorder: int) -> Tensor:
    return grad.clone()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.recorder = inputs[2]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    (call,) = ctx.saved_tensors
    return receive(grad.contiguous(), call, ctx.recorder), None, None, None, None


tap.register_autograd(_backward, setup_context=_keep)
