"""What the layers of a model capture from a batch, in shapes: nothing is computed on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..blocks import Layout
from ..capture import Watched
from ..errors import OptionError
from ..layers import Bare, LayerCall, UnsupportedCall, gradients_of
from ..per_sample import LayerGradients, join_uses


def captured_shapes(model: nn.Module, inputs: Any, layout: Layout) -> dict[str, LayerGradients]:
    """Run the model once and return what each part of a layer would give, zeros in place of output gradients."""
    captured: dict[str, list[LayerGradients]] = {}

    def hook_for(entry: Watched) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(entry.layer.function, Bare):
                p = entry.parts[0][0]
                n = next(len(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                output = module.get_parameter(p).detach().expand(n, *module.get_parameter(p).shape)
            grads = tuple(torch.zeros_like(x) for x in tree_leaves(output) if isinstance(x, Tensor))
            call = LayerCall(args, kwargs, grads, entry.wanted, module.training)
            with suppress(UnsupportedCall):
                for part, io in gradients_of(entry.layer, module, call, entry.parts, entry.name).items():
                    captured.setdefault(entry.key(part), []).append(io)

        return hook

    entries = {m.watched.name: m.watched for block in layout.blocks.values() for m, _ in block.members}
    handles = [entry.module.register_forward_hook(hook_for(entry), with_kwargs=True) for entry in entries.values()]
    try:
        with torch.no_grad(), untouched_buffers(model), torch.random.fork_rng():
            _call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: join_uses(uses) for name, uses in captured.items()}


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, Tensor):
        model(inputs)
    elif isinstance(inputs, Sequence):
        model(*inputs)
    else:
        raise OptionError(
            "plan()", "inputs out of range", expected="a tensor, or a sequence or mapping of arguments", got=inputs,
            fix="Pass a batch as training does",
        )  # fmt: skip


class untouched_buffers:
    """Put a model's buffers back on exit."""

    def __init__(self, model: nn.Module):
        self._buffers = list(model.buffers())

    def __enter__(self) -> None:
        self._saved = [buffer.clone() for buffer in self._buffers]

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for buffer, saved in zip(self._buffers, self._saved, strict=True):
                buffer.copy_(saved)
