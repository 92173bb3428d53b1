"""Fisher of a classifier's own predictions: rows are gradients at labels drawn from the model."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from .base import Fisher, SampleFunction


class Sampled(Fisher):
    """One label a sample is drawn from softmax(logits): an unbiased estimate of the Fisher matrix.

    Samples are pairs (inputs, targets); the function takes (inputs, targets) of one sample and gives its logits
    [classes], or takes all and gives [n, classes]. The loss is the mean cross-entropy at the true targets.
    """

    classifies = True

    def losses(self, fn: SampleFunction) -> SampleFunction:
        return lambda leaves, sample: _cross_entropy(fn(leaves, sample[:2]), sample[1])

    def outputs(self, fn: SampleFunction) -> SampleFunction:
        def at_drawn_label(leaves: tuple[Tensor, ...], sample: tuple[Tensor, ...]) -> Tensor:
            logits = fn(leaves, sample[:2])
            return _cross_entropy(logits, label_at(logits.detach(), sample[2]))

        return at_drawn_label

    def coefficients(self, outputs: Tensor) -> None:
        return None


def label_at(logits: Float[Tensor, "*n classes"], chance: Float[Tensor, " *n"]) -> Int[Tensor, " *n"]:
    """Return the label at which the distribution function of softmax(logits) passes ``chance``, uniform in [0, 1).

    A function of its arguments alone, so that whoever differentiates the outputs again meets the same labels.
    """
    passed = logits.softmax(-1).cumsum(-1) <= chance.to(logits)[..., None]
    return passed.sum(-1).clamp(max=logits.shape[-1] - 1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits, target, reduction="none")
