"""What a strategy does between the stages; this one does nothing, for one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ..wrappers import Cut
from .communicator import Communicator, several_ranks
from .plan import RATES, Load, Plan, Rates
from .wire import Spec

T = TypeVar("T")
Makers = Mapping[str, Callable[[], list[Tensor]]]  # by block, what makes this rank's tensors
Everyones = Mapping[str, list[list[Spec]]]  # by block and rank, shapes and dtypes of everyone's


@dataclass(frozen=True)
class Batch:
    """What a rank brings to a step: a 0-d bool, whether it is good, and the facts that must be alike on all ranks."""

    good: Tensor
    facts: Callable[[], Mapping[str, str]]


class Updates(ABC):
    """Directions on their way to the other ranks."""

    def take(self, name: str) -> Sequence[Tensor]:
        """Return the whole gradients of a block that is cut among ranks, for the direction to be written there.

        All ranks take every block, in the same order; there are none for a rank that does not precondition it.
        """
        raise NotImplementedError

    @abstractmethod
    def ready(self, name: str, written: bool) -> None:
        """Say that a block's direction is in its gradients, or that this rank has no curvature for it."""

    @abstractmethod
    def finish(self, holders: Mapping[str, int]) -> None:
        """Wait until all gradients hold what they are to hold. ``holders`` counts ranks with curvature by block."""


class Strategy:
    """One process: every rank keeps to itself.

    Laws every subclass obeys: ``together``, ``census``, ``exchange``, ``spread``, ``tables`` and what
    ``updates`` gives are collective calls, made in the same order by all ranks; an error raised inside ``together`` on
    one rank is an error on all before anything else is sent; after ``Updates.finish`` all ranks hold the same
    directions, bit for bit.

    Attributes:
        name: Key of the table.
        pooled: Whether one curvature has the samples of all ranks behind it.
        several: Whether directions travel between ranks.
        wire: Collective calls between the ranks.
        rank: This rank.
        world: Number of ranks.
        plan: Who does what; made at the first refresh.
    """

    name: ClassVar[str] = "none"
    pooled: ClassVar[bool] = False
    several: ClassVar[bool] = False

    def __init__(self, wire_dtype: torch.dtype | None = None):
        self.wire_dtype = wire_dtype
        self.wire = Communicator()
        self.rank, self.world = 0, 1
        self.plan = Plan("none", 1)
        self.device = torch.device("cpu")
        self.given_rates: Rates | None = None

    @property
    def rates(self) -> Rates:
        """What a rank computes and receives in a second, to weigh one against the other: as given, or a guess."""
        return self.given_rates or RATES.get(self.device.type, RATES["cuda"])

    def current(self, name: str) -> bool:
        """Return whether an option of this name still stands for this strategy, with the ranks that there are now."""
        return name == "none" or (name == "auto" and not several_ranks())

    def together(self, prepare: Callable[[], tuple[T, Batch]]) -> tuple[T, Callable[[], bool]]:
        """Return what ``prepare`` gives, and a function that waits to hear whether it is good on all ranks.

        That function raises RankError where another rank raised an error, or ranks differ in their facts.
        """
        value, batch = prepare()
        return value, lambda: bool(batch.good)

    def candidates(self) -> Sequence[Strategy]:
        """Return the strategies to choose from at the first refresh."""
        return (self,)

    def census(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return every rank's numbers."""
        return [list(numbers)]

    def arrange(self, loads: Mapping[str, Load], interval: int, overhead: int, budget: int | None) -> Plan:
        """Return who does what. Pure: the same on all ranks for the same numbers."""
        return Plan("none", 1, interval=interval)

    def update_bytes(self, specs: Sequence[Spec]) -> int:
        """Return what gradients of these shapes and dtypes take on the wire."""
        return 0

    def part_bytes(self, specs: Sequence[Spec]) -> int:
        """Return what a rank's parts of gradients that are cut take on the wire."""
        return 0

    def holds(self, block: str) -> bool:
        """Whether this rank keeps the curvature of a block."""
        return True

    def solves(self, block: str) -> bool:
        """Whether this rank factorises it."""
        return True

    def reads(self, block: str) -> Sequence[int]:
        """Return the ranks that need every rank's samples of a block."""
        return ()

    def exchange(self, own: Makers, specs: Everyones) -> Callable[[str], list[list[Tensor]]]:
        """Start sending samples to those who read them.

        Args:
            own: By block, a function that makes this rank's tensors.
            specs: By block and rank, the shapes and dtypes of everyone's.

        Returns:
            A function from a block's name to every rank's tensors, which waits for them.
        """
        raise NotImplementedError

    def spread(self, own: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> dict[str, Tensor]:
        """Return what the owner of each block says about it, one vector a block."""
        return dict(own)

    def tables(self, own: Tensor, purpose: str) -> Tensor:
        """Return every rank's vector, stacked."""
        return own[None]

    def updates(
        self, gradients: Mapping[str, Sequence[Tensor]], cuts: Mapping[str, Sequence[Cut]] | None = None
    ) -> Updates:
        """Return the way of a step's directions to the other ranks.

        Args:
            gradients: Each block's, or this rank's parts of them.
            cuts: How they are cut among the ranks, where they are.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what was set up."""
