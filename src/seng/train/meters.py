"""Running sums of what a model answers: loss and right answers, over samples and over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import ALONE, Ranks

TOP = 5  # answers that the looser accuracy admits
LEAST_CLASSES = 10  # fewer classes make that accuracy meaningless


@dataclass(frozen=True)
class Evaluation:
    """Means over samples.

    Attributes:
        loss: mean loss.
        accuracy: share of right answers; None where there are no classes.
        accuracy5: share of answers whose class is among the five likeliest; None below ten classes.
    """

    loss: float
    accuracy: float | None = None
    accuracy5: float | None = None


class Meter:
    """Sums on the device, in float64; reading them waits for it, adding does not.

    Args:
        device: where outputs are.
        classes: how many the targets have, or None.
        sums: what was summed before, over all processes: the state of another meter.
    """

    def __init__(self, device: torch.device, classes: int | None, sums: Sequence[float] = ()) -> None:
        loss, right, right5, self._samples, self._answers = sums or (0.0,) * 5
        self._classes = classes
        self._sums = torch.tensor([loss, right, right5], dtype=torch.float64, device=device)

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor, *, top: bool = False) -> None:
        """Take in a batch.

        Args:
            loss: its mean loss, 0-d.
            outputs: ``[n, classes, ...]`` where there are classes.
            targets: ``[n, ...]``.
            top: count the answers among the five likeliest, too.
        """
        right = right5 = loss.new_zeros((), dtype=torch.float64)
        if self._classes is not None:
            self._answers += targets.numel()
            right = (outputs.argmax(1) == targets).sum().double()
            if top and self._classes >= LEAST_CLASSES:
                right5 = (outputs.topk(TOP, dim=1).indices == targets.unsqueeze(1)).sum().double()
        self._sums += torch.stack((loss.double() * len(targets), right, right5))
        self._samples += len(targets)

    def sums(self, ranks: Ranks = ALONE) -> list[float]:
        """Return the sums over all processes, for a meter that goes on from here in one of them."""
        counts = self._sums.new_tensor([self._samples, self._answers])
        return ranks.sum(torch.cat([self._sums, counts])).tolist()

    def read(self, ranks: Ranks = ALONE) -> Evaluation:
        """Return the means over all processes."""
        loss, right, right5, samples, answers = self.sums(ranks)
        if self._classes is None:
            return Evaluation(loss / samples)
        top = right5 / answers if self._classes >= LEAST_CLASSES else None
        return Evaluation(loss / samples, right / answers, top)
