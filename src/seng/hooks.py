"""Module hooks that survive what is done to a model: copies, pickles, function transforms and tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from .errors import OrderError


class Recorder(Protocol):
    """What places hooks; they record while it is armed."""

    armed: bool


class ScriptError(OrderError, AttributeError):
    """A model with hooks cannot be scripted; an AttributeError, too, for whoever looks for a name."""


class Hook:
    """A hook that acts on the model it was placed on alone: copies and pickles of it do nothing.

    Args:
        act: What is called in its place.
        owner: Whose hook it is: it acts while its owner is armed. None: it always does.
    """

    def __init__(self, act: Callable[..., Any], owner: Recorder | None = None):
        self._act, self.owner = act, owner

    def __call__(self, *args: Any) -> Any:
        if self.owner is not None and not self.owner.armed:  # all that a compiled graph keeps of an idle hook
            return None
        return self._act(*args)

    @property
    def __name__(self) -> str:
        """Refuse ``torch.jit.script``, which reads the name of a hook in order to compile it."""
        raise ScriptError(
            "torch.jit.script()", "the model has hooks of seng", expected="a model without them",
            got=type(self.owner).__name__, fix="Call close() first, or use torch.jit.trace",
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_nothing,)


def recorders(model: nn.Module) -> list[Recorder]:
    """Return what records calls of a model's modules, each once."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    owners = [hook.owner for hook in hooks if isinstance(hook, Hook) and hook.owner is not None]
    return list({id(owner): owner for owner in owners}.values())


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Let nothing be recorded."""
    armed = {id(owner): owner for owner in recorders(model) if owner.armed}
    for owner in armed.values():
        owner.armed = False
    try:
        yield
    finally:
        for owner in armed.values():
            owner.armed = True


def _nothing(*args: Any) -> None:
    return None


def transformed() -> bool:
    """Return whether a call belongs to ``torch.func`` or ``torch.jit.trace``, not to training."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.jit.is_tracing()  # type: ignore[attr-defined]


def exporting() -> bool:
    """Return whether a call belongs to ``torch.export``, whose program is to be the model's alone."""
    return torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else False
