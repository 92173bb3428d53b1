"""What every rank captured, in shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..per_sample import LayerGradients, Lookup, Shape
from ..per_sample.shape import NUMBERS


@dataclass(frozen=True)
class Census:
    """What every rank captured, in shapes.

    Args:
        samples: By rank.
        shapes: By rank: of each block that was used, each member's.
        batches: By rank, the number of samples that these were drawn from; empty: all of them.
    """

    samples: tuple[int, ...]
    shapes: tuple[dict[str, dict[int, Shape]], ...]
    batches: tuple[int, ...] = ()

    @classmethod
    def gather(
        cls,
        members: Mapping[str, Mapping[int, LayerGradients]],
        counts: Sequence[int],
        entries: Sequence[tuple[str, int]],
        everyones: Callable[[list[int]], list[list[int]]],
    ) -> Census:
        """Tell all ranks what this one captured, as integers. A collective call.

        Args:
            members: By block and member, the samples.
            counts: Their number; and, where some are left out by choice, that of those they were drawn from.
            entries: The blocks and members that any rank may have samples of.
            everyones: Returns every rank's integers.
        """
        row = [*counts]
        for block, k in entries:
            io = members.get(block, {}).get(k)
            row += (Shape() if io is None else io.shape).numbers()
        rows = everyones(row)
        shapes: list[dict[str, dict[int, Shape]]] = [{} for _ in rows]
        for row, own in zip(rows, shapes, strict=True):
            for place, (block, k) in enumerate(entries):
                shape = Shape.of_numbers(row[len(counts) :][place * NUMBERS : (place + 1) * NUMBERS])
                if shape.kind != "absent":
                    own.setdefault(block, {})[k] = shape
        batches = tuple(row[1] for row in rows) if len(counts) > 1 else ()
        return cls(tuple(row[0] for row in rows), tuple(shapes), batches)

    def of(self, block: str) -> list[dict[int, Shape]]:
        """Return each rank's shapes of a block, empty where it was not used."""
        return [own.get(block, {}) for own in self.shapes]

    def rows(self, rank: int, positions: str) -> int:
        """Return how many rows of U a rank has."""
        longest = max((shape.s for own in self.shapes[rank].values() for shape in own.values()), default=1)
        return self.samples[rank] * (longest if positions == "expand" else 1)

    def without(self, ranks: set[int]) -> Census:
        """Return the census as if some ranks had no samples."""
        samples = tuple(0 if rank in ranks else n for rank, n in enumerate(self.samples))
        batches = tuple(0 if rank in ranks else n for rank, n in enumerate(self.batches))
        return Census(samples, tuple({} if rank in ranks else own for rank, own in enumerate(self.shapes)), batches)

    def joined(self, block: str, pooled: bool) -> dict[int, Shape]:
        """Return the shapes of a block's samples on all ranks together, or of the largest share."""
        found: dict[int, list[Shape]] = {}
        for own in self.of(block):
            for k, shape in own.items():
                found.setdefault(k, []).append(shape)
        count = sum if pooled else max
        return {
            k: replace(alike[-1], n=count(shape.n for shape in alike), s=max(shape.s for shape in alike))
            for k, alike in found.items()
        }

    def looks_up(self, block: str) -> bool:
        """Whether a block's samples are an embedding's on any rank."""
        return any(shape.kind == Lookup.kind for own in self.of(block) for shape in own.values())
