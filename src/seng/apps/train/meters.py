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
    """Sums in float64; reading them waits for the device, adding does not.

    Args:
        device: where outputs are.
        classes: how many the targets have, or None.
        sums: what was summed before, over all processes: the state of another meter.
    """

    def __init__(self, device: torch.device, classes: int | None, sums: Sequence[float] = ()) -> None:
        self._device, self._classes = device, classes
        self._sums = list(sums) or [0.0] * 5  # loss, right, right of five, samples, answers
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []
        self._counts: list[tuple[int, int]] = []

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor, *, top: bool = False) -> None:
        """Take in a batch.

        Args:
            loss: its mean loss, 0-d.
            outputs: ``[n, classes, ...]`` where there are classes.
            targets: ``[n, ...]``.
            top: count the answers among the five likeliest, too.
        """
        answers = 0
        if self._classes is not None:
            answers = targets.numel()
            self._right.append((outputs.argmax(1) == targets).sum())
            if top and self._classes >= LEAST_CLASSES:
                self._right.append((outputs.topk(TOP, dim=1).indices == targets.unsqueeze(1)).sum())
        self._losses.append(loss)
        self._counts.append((len(targets), answers))

    def sums(self, ranks: Ranks = ALONE) -> list[float]:
        """Return the sums over all processes, for a meter that goes on from here in one of them."""
        if self._losses:
            self._take_in()
        return ranks.sum(torch.tensor(self._sums, dtype=torch.float64, device=self._device)).tolist()

    def _take_in(self) -> None:
        """Sum what was added, one after the other, so that the bits do not depend on when it is done."""
        right = torch.stack(self._right).reshape(len(self._counts), -1).tolist() if self._right else None
        for number, (loss, (samples, answers)) in enumerate(
            zip(torch.stack(self._losses).tolist(), self._counts, strict=True)
        ):
            first, five, *_ = (*(right[number] if right else ()), 0, 0)
            new = (loss * samples, first, five, samples, answers)
            self._sums = [x + y for x, y in zip(self._sums, new, strict=True)]
        self._losses, self._right, self._counts = [], [], []

    def read(self, ranks: Ranks = ALONE) -> Evaluation:
        """Return the means over all processes."""
        loss, right, right5, samples, answers = self.sums(ranks)
        if self._classes is None:
            return Evaluation(loss / samples)
        top = right5 / answers if self._classes >= LEAST_CLASSES else None
        return Evaluation(loss / samples, right / answers, top)
