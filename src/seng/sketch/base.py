"""What a sketch is: a random q x d matrix S with E[S^T S] = I, applied without being formed where possible."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor


class Sketch(ABC):
    """A drawn sketch S of shape [q, d].

    Laws every subclass obeys: linear; E[S^T S] = I over draws; the draw depends on its generator and
    scores alone; q >= d gives the identity (drawn by the table's functions, not by the class). Sketches are saved and
    loaded by the name of their class.
    """

    TYPES: ClassVar[dict[str, type[Sketch]]] = {}
    size: int

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        Sketch.TYPES[cls.__name__] = cls

    @abstractmethod
    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch q"]:
        """Apply S along the last axis."""


Draw = Callable[[int, int, torch.Generator, Tensor], Sketch]
S = TypeVar("S", bound=Sketch)


@dataclass(frozen=True)
class Heavy(Generic[S]):
    """A function of the table whose sketches take so much memory that plans have to count it.

    Args:
        draw: (coordinates d, rows q, generator, squared row norms of U [d]) -> S.
        nbytes: (d, q) -> bytes of S.
    """

    draw: Callable[[int, int, torch.Generator, Tensor], S]
    nbytes: Callable[[int, int], int]

    def __call__(self, d: int, q: int, generator: torch.Generator, scores: Tensor) -> S:
        return self.draw(d, q, generator, scores)


@dataclass(frozen=True)
class Identity(Sketch):
    """No sketch at all: what every table entry returns when as many rows are asked for as there are."""

    size: int

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return x


@dataclass(frozen=True)
class Sampling(Sketch):
    """Row j of S picks coordinate ``index[j]`` and scales it by ``weight[j]``.

    Args:
        index: Picked coordinates, [q].
        weight: One over the square root of each inclusion probability, [q].
    """

    index: Tensor
    weight: Tensor

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.index)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch q"]:
        index, weight = self.index.to(x.device), self.weight.to(x)
        return x.index_select(-1, index) * weight


def generator_for(seed: int, step: int, name: str) -> torch.Generator:
    """Return the generator of one layer at one step: the same on every rank and in every resumed run.

    Args:
        seed: The run's seed.
        step: Step of the refresh.
        name: Qualified name of the layer.
    """
    mixed = 0xCBF29CE484222325  # FNV-1a, stable across processes where hash() is not
    for byte in f"{seed}/{step}/{name}".encode():
        mixed = ((mixed ^ byte) * 0x100000001B3) % 2**64
    return torch.Generator().manual_seed(mixed % 2**63)
