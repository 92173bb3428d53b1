"""Losses by name, each a mean over the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...errors import choose
from .config import LossConfig
from .errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(
    outputs: Float[Tensor, "n classes ..."], targets: Tensor, *, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the mean cross entropy over samples, and over the positions of each.

    Args:
        outputs: scores ``[n, classes]`` of pictures, ``[n, classes, s]`` of texts.
        targets: the right classes, whole numbers of shape ``[n]`` or ``[n, s]``.
        label_smoothing: share of the target spread over all classes, from 0 to 1.

    Raises:
        ConfigError: the targets are no classes (torch would read numbers of the outputs' shape as probabilities).
    """
    if targets.is_floating_point():
        _refuse("cross-entropy", "the data have no classes", "whole numbers", targets, "half-squared-error")
    scores = outputs.movedim(1, -1).flatten(0, -2)  # torch's form for positions is not deterministic on a GPU
    return functional.cross_entropy(scores, targets.flatten(), label_smoothing=label_smoothing)


def half_squared_error(outputs: Float[Tensor, "n ..."], targets: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """Return the mean over samples of ``sum (output - target)^2 / 2``, in the wider type of the two.

    Raises:
        ConfigError: the shapes differ (torch would repeat one along the other), or the targets are classes.
    """
    if outputs.shape != targets.shape or not targets.is_floating_point():
        expected = f"numbers of shape {tuple(outputs.shape)}"
        _refuse("half-squared-error", "the targets do not fit the outputs", expected, targets, "cross-entropy")
    return (outputs - targets).square().sum() / (2 * len(outputs))


def _refuse(loss: str, problem: str, expected: str, targets: Tensor, other: str) -> None:
    got = f"{targets.dtype} of shape {tuple(targets.shape)}"
    raise ConfigError(f"loss {loss}", problem, expected=expected, got=got, fix=f"Choose loss.name={other}, say")


LOSSES: dict[str, Callable[[LossConfig], Loss]] = {
    "cross-entropy": lambda config: partial(cross_entropy, label_smoothing=config.label_smoothing),
    "half-squared-error": lambda config: half_squared_error,
}


def build_loss(config: LossConfig) -> Loss:
    """Return the loss that ``config`` names, from outputs and targets to a number.

    Raises:
        SengError: no loss has that name.
    """
    return choose(LOSSES, config.name, call="build_loss", option="loss")(config)
