"""Settings that bases are built from, and the parameters they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..checks import is_number, plain, require
from ..errors import OptionError

LEARNING_RATES = {"sgd": 0.1, "adamw": 0.003, "muon": 0.02}  # where none is given; factories set their own


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

    @classmethod
    def build(
        cls, base: str | Callable[..., Any], lr: Any, momentum: Any, nesterov: Any, weight_decay: Any, extra: Any
    ) -> BaseSettings:
        """Return validated settings; numbers of other libraries become Python's.

        Raises:
            OptionError: A setting is out of range, or a factory stands beside a learning rate.
        """
        lr, momentum, weight_decay = plain(lr), plain(momentum), plain(weight_decay)
        require(
            "SENG()", "lr", lr, lr is None or _in_range(value_of(lr)), "a number >= 0, or None for the base's default"
        )
        require("SENG()", "momentum", momentum, _in_range(momentum, 1), "a number in [0, 1)")
        require("SENG()", "weight_decay", weight_decay, _in_range(weight_decay), "a number >= 0")
        require("SENG()", "nesterov", nesterov, isinstance(nesterov, bool), "True or False")
        require("SENG()", "nesterov", nesterov, not nesterov or momentum > 0, "False where momentum is 0")
        require("SENG()", "base_options", extra, isinstance(extra, dict | None), "a dict or None")
        if callable(base) and lr is not None:
            raise OptionError(
                "SENG()", "lr does not go with a factory", expected="None", got=lr,
                fix="Give it to the optimizer that the factory makes",
            )  # fmt: skip
        if lr is None:
            lr = LEARNING_RATES.get(base, 0.0) if isinstance(base, str) else 0.0
        return cls(lr, momentum, nesterov, weight_decay, extra or {})


def value_of(x: Any) -> Any:
    """Return the number in a real tensor of one that has a value, and anything else as it is."""
    one = isinstance(x, Tensor) and x.numel() == 1 and x.is_floating_point() and not x.is_meta
    return x.item() if one else x


def held_by_bases(model: nn.Module) -> list[nn.Parameter]:
    """Return what a base holds: all parameters that are trained, or may be later, as with torch's own optimizers."""
    return [p for p in model.parameters() if p.requires_grad or p.is_floating_point()]


def _in_range(value: Any, high: float = float("inf")) -> bool:
    return is_number(value) and 0 <= value < high
