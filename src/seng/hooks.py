"""Module hooks that survive what is done to a model: copies, pickles, function transforms and tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Hook:
    """A hook that acts on the model it was placed on alone: copies and pickles of it do nothing.

    Args:
        act: What is called in its place.
    """

    def __init__(self, act: Callable[..., Any]):
        self._act = act

    def __call__(self, *args: Any) -> Any:
        return self._act(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_nothing,)


def acting(hooks: Iterable[object]) -> bool:
    """Return whether one of a module's hooks records for an optimizer."""
    return any(isinstance(hook, Hook) and hook._act is not _nothing for hook in hooks)


def _nothing(*args: Any) -> None:
    return None


def transformed() -> bool:
    """Return whether a call belongs to ``torch.func``, ``torch.jit.trace`` or ``torch.export``, not to training."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.jit.is_tracing()  # type: ignore[attr-defined]
