"""What a data set is: two splits, each giving the batch of any sample numbers, and the order of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import DataConfig


class Split(Protocol):
    """Samples that can be asked for by number."""

    def __len__(self) -> int:
        """Return how many samples there are."""
        ...

    def batch(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of some samples, in the order asked.

        Args:
            indices: numbers of the samples, each in [0, len).
            draw: which random variation of each sample to give, where samples are augmented: the variation
                depends on ``draw`` and the sample's number only.
        """
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split held in memory."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.targets)

    def batch(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of some samples, in the order asked."""
        return self.inputs[indices], self.targets[indices]


@dataclass(frozen=True)
class Prefix:
    """The first samples of a split."""

    whole: Split
    samples: int

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self.samples

    def batch(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of some samples, in the order asked."""
        return self.whole.batch(indices, draw)


@dataclass(frozen=True)
class Dataset:
    """A data set's two splits."""

    train: Split
    test: Split


@dataclass(frozen=True)
class Signature:
    """What a data set's samples look like, known without reading it.

    Attributes:
        shape: of one input: ``(channels, height, width)`` of a picture, ``(length,)`` of a text, ``(columns,)`` of a
            table.
        classes: number of classes (of characters, for a text); None where the targets are no classes.
        texts: whether inputs are whole numbers that stand for characters.
    """

    shape: tuple[int, ...]
    classes: int | None
    texts: bool = False

    def inputs(self, samples: int) -> Tensor:
        """Return made-up inputs of the right shape and type."""
        if self.texts:
            return torch.zeros(samples, *self.shape, dtype=torch.long)
        return torch.randn(samples, *self.shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Source:
    """A data set: how to load it, a line that says whether it is there, and what its samples look like.

    Attributes:
        options: which of ``DataConfig``'s "augment" and "size" it acts upon; the others are refused.
    """

    load: Callable[[DataConfig], Dataset]
    status: Callable[[DataConfig], str]
    signature: Callable[[DataConfig], Signature]
    options: frozenset[str] = frozenset()


def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Split a shuffled epoch into batches of equal size, give or take one sample, none above ``batch_size``.

    The order depends on ``seed`` and ``epoch`` only, so a run can continue from any step.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator).tensor_split(steps_per_epoch(samples, batch_size))


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of batches in an epoch."""
    return math.ceil(samples / batch_size)


def standardised(
    train: Float[Tensor, "n h w"], train_targets: Tensor, test: Float[Tensor, "m h w"], test_targets: Tensor
) -> Dataset:
    """Give grey pictures a channel, and the training pictures mean 0 and deviation 1."""
    mean, deviation = train.mean(), train.std()
    pictures = [((part - mean) / deviation).unsqueeze(1) for part in (train, test)]
    return Dataset(TensorSplit(pictures[0], train_targets), TensorSplit(pictures[1], test_targets))
