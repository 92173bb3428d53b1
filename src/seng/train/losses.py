"""Losses by name, each a mean over the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from ..errors import choose
from .config import LossConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(config: LossConfig) -> Loss:
    return partial(functional.cross_entropy, label_smoothing=config.label_smoothing)


LOSSES: dict[str, Callable[[LossConfig], Loss]] = {"cross-entropy": _cross_entropy}


def build_loss(config: LossConfig) -> Loss:
    """Return the loss that ``config`` names, from outputs and targets to a number.

    Raises:
        SengError: no loss has that name.
    """
    return choose(LOSSES, config.name, call="build_loss", option="loss")(config)
