"""Batches prepared ahead of the loop that uses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .base import Split

CPU = torch.device("cpu")


def prefetched(
    split: Split, batches: Sequence[Tensor], *, draw: int = 0, workers: int = 0, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs and targets of each batch of sample numbers, in the order given, on ``device``.

    The batches are the same, bit for bit, for any number of workers. Closing the iterator (leaving a ``for`` loop by
    ``break`` or an exception, in time; ``contextlib.closing`` at once) ends the workers.

    Args:
        split: the samples.
        batches: sample numbers, a batch each, as ``epoch_batches`` gives them; a resumed epoch passes the rest.
        draw: which random variation of the samples, where they are augmented: give the epoch's number.
        workers: how many prepare batches ahead of the loop; 0: each batch is prepared when it is asked for.
        device: where the batches go; to a GPU from pinned memory, without waiting.

    Raises:
        DataError: a sample cannot be read; it is named.
    """
    for indices in batches:
        inputs, targets = split.batch(indices, draw)
        yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
