"""What a layer captured, as a frame of integers and a few tensors: the form in which samples travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import LayerIO, Lookup, Product, Rows

KINDS = ("absent", "product", "lookup", "rows")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
Spec = tuple[tuple[int, ...], torch.dtype]
Members = Mapping[str, Mapping[int, LayerIO]]  # what each block's members captured


@dataclass(frozen=True)
class Frame:
    """The shape of what one layer captured on one rank, as integers alone.

    Args:
        kind: Position in KINDS.
        n: Samples.
        c: Groups.
        s: Positions.
        d_in: Features in, of one group.
        d_out: Features out, of one group.
        extra: Whether a product has a bias; rows of an embedding.
        left: Position in DTYPES of the inputs'.
        right: Position in DTYPES of the output gradients'.
    """

    kind: int = 0
    n: int = 0
    c: int = 0
    s: int = 0
    d_in: int = 0
    d_out: int = 0
    extra: int = 0
    left: int = 0
    right: int = 0

    def specs(self, widths: Sequence[int]) -> list[Spec]:
        """Return shapes and dtypes of the tensors; ``widths`` are the sizes of the layer's parameters."""
        left, right = DTYPES[self.left], DTYPES[self.right]
        if KINDS[self.kind] == "product":
            shape = (self.c, self.n, self.d_out, self.s)
            return [((self.c, self.n, self.d_in, self.s), left), (shape, right)]
        if KINDS[self.kind] == "lookup":
            return [((self.n, self.s), left), ((self.n, self.s, self.d_out), right)]
        return [((self.n, width), right) for width in widths] if self.kind else []

    def numbers(self) -> tuple[int, ...]:
        """Return the fields as integers."""
        return tuple(vars(self).values())  # astuple copies deeply: a millisecond a refresh


NUMBERS = len(Frame().numbers())


def frame_of(io: LayerIO) -> Frame:
    """Describe what a layer captured."""
    right = DTYPES.index(io.dtype)
    if isinstance(io, Product):
        c, n, d_out, s = io.g.shape
        return Frame(1, n, c, s, io.d_in, d_out, int(io.bias), DTYPES.index(io.a.dtype), right)
    if isinstance(io, Lookup):
        return Frame(2, io.n, 1, io.positions, 1, io.g.shape[2], io.vocabulary, DTYPES.index(io.ids.dtype), right)
    return Frame(3, io.n, 1, 1, right=right)


def tensors_of(io: LayerIO) -> tuple[Tensor, ...]:
    """Return the tensors that ``Frame.specs`` announces; overlapping patches are written out."""
    if isinstance(io, Product):
        c, n, _, s = io.g.shape
        return io.a.reshape(c, n, io.d_in, s), io.g
    return (io.ids, io.g) if isinstance(io, Lookup) else io.parts


def io_of(frame: Frame, tensors: Sequence[Tensor]) -> LayerIO:
    """Undo ``frame_of`` and ``tensors_of``."""
    if KINDS[frame.kind] == "product":
        return Product(tensors[0], tensors[1], 1, bool(frame.extra))
    if KINDS[frame.kind] == "lookup":
        return Lookup(tensors[0], tensors[1], frame.extra)
    return Rows(tuple(tensors))


def silent(frame: Frame, n: int, widths: Sequence[int], device: torch.device) -> LayerIO:
    """Return n samples that contribute nothing to a layer of this shape."""
    specs = replace(frame, n=n, s=1).specs(widths)
    return io_of(frame, [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in specs])


def shape_only(frame: Frame, widths: Sequence[int]) -> LayerIO:
    """Return what a frame describes without any data, to plan with."""
    return io_of(frame, [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in frame.specs(widths)])


@dataclass(frozen=True)
class Census:
    """What every rank captured, in shapes.

    Args:
        samples: By rank.
        frames: By rank: of each block that was used, each member's.
    """

    samples: tuple[int, ...]
    frames: tuple[dict[str, dict[int, Frame]], ...]

    @classmethod
    def gather(
        cls,
        members: Members,
        samples: int,
        entries: Sequence[tuple[str, int]],
        everyones: Callable[[list[int]], list[list[int]]],
    ) -> Census:
        """Tell all ranks what this one captured, as integers. A collective call.

        Args:
            members: By block and member, the samples.
            samples: Their number.
            entries: The blocks and members that any rank may have samples of.
            everyones: Returns every rank's integers.
        """
        row = [samples]
        for block, k in entries:
            io = members.get(block, {}).get(k)
            row += (Frame() if io is None else frame_of(io)).numbers()
        rows = everyones(row)
        frames: list[dict[str, dict[int, Frame]]] = [{} for _ in rows]
        for row, own in zip(rows, frames, strict=True):
            for place, (block, k) in enumerate(entries):
                frame = Frame(*row[1 + place * NUMBERS : 1 + (place + 1) * NUMBERS])
                if frame.kind:
                    own.setdefault(block, {})[k] = frame
        return cls(tuple(row[0] for row in rows), tuple(frames))

    def of(self, block: str) -> list[dict[int, Frame]]:
        """Return each rank's frames of a block, empty where it was not used."""
        return [own.get(block, {}) for own in self.frames]

    def rows(self, rank: int, positions: str) -> int:
        """Return how many rows of U a rank has."""
        longest = max((frame.s for own in self.frames[rank].values() for frame in own.values()), default=1)
        return self.samples[rank] * (longest if positions == "expand" else 1)

    def without(self, ranks: set[int]) -> Census:
        """Return the census as if some ranks had no samples."""
        samples = tuple(0 if rank in ranks else n for rank, n in enumerate(self.samples))
        return Census(samples, tuple({} if rank in ranks else own for rank, own in enumerate(self.frames)))

    def joined(self, block: str, pooled: bool) -> dict[int, Frame]:
        """Return the frames of a block's samples on all ranks together, or of the largest share."""
        found: dict[int, list[Frame]] = {}
        for own in self.of(block):
            for k, frame in own.items():
                found.setdefault(k, []).append(frame)
        count = sum if pooled else max
        return {
            k: replace(alike[-1], n=count(frame.n for frame in alike), s=max(frame.s for frame in alike))
            for k, alike in found.items()
        }

    def looks_up(self, block: str) -> bool:
        """Whether a block's samples are an embedding's on any rank."""
        return any(KINDS[frame.kind] == "lookup" for own in self.of(block) for frame in own.values())
