"""Settings that bases are built from, and the parameters they hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class BaseSettings:
    """Settings a base is built from.

    Args:
        lr: Learning rate, >= 0.
        momentum: Of SGD, in [0, 1).
        nesterov: Of SGD.
        weight_decay: >= 0.
        extra: Further keyword arguments of the base optimizer.
    """

    lr: float | Tensor
    momentum: float
    nesterov: bool
    weight_decay: float
    extra: dict[str, Any] = field(default_factory=dict)


def value_of(x: Any) -> Any:
    """Return the number in a real tensor of one that has a value, and anything else as it is."""
    one = isinstance(x, Tensor) and x.numel() == 1 and x.is_floating_point() and not x.is_meta
    return x.item() if one else x


def held_by_bases(model: nn.Module) -> list[nn.Parameter]:
    """Return what a base holds: all parameters that are trained, or may be later, as with torch's own optimizers."""
    return [p for p in model.parameters() if p.requires_grad or p.is_floating_point()]
