"""What a layer captured, as a frame of integers and a few tensors: the form in which samples travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..per_sample import LayerGradients, Lookup, Product, Rows

KINDS = ("absent", "product", "lookup", "rows")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
Spec = tuple[tuple[int, ...], torch.dtype]


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
            shape = (self.c, self.n, self.s, self.d_out)
            return [((self.c, self.n, self.s, self.d_in), left), (shape, right)]
        if KINDS[self.kind] == "lookup":
            return [((self.n, self.s), left), ((self.n, self.s, self.d_out), right)]
        return [((self.n, width), right) for width in widths] if self.kind else []

    def numbers(self) -> tuple[int, ...]:
        """Return the fields as integers."""
        return tuple(vars(self).values())  # astuple copies deeply: a millisecond a refresh


NUMBERS = len(Frame().numbers())


def frame_of(io: LayerGradients) -> Frame:
    """Describe what a layer captured."""
    right = DTYPES.index(io.dtype)
    if isinstance(io, Product):
        c, n, s, d_out = io.g.shape
        return Frame(1, n, c, s, io.d_in, d_out, int(io.bias), DTYPES.index(io.a.dtype), right)
    if isinstance(io, Lookup):
        return Frame(2, io.n, 1, io.positions, 1, io.g.shape[2], io.vocabulary, DTYPES.index(io.ids.dtype), right)
    return Frame(3, io.n, 1, 1, right=right)


def tensors_of(io: LayerGradients) -> tuple[Tensor, ...]:
    """Return the tensors that ``Frame.specs`` announces; overlapping patches are written out."""
    if isinstance(io, Product):
        return io.inputs(), io.g
    if isinstance(io, Lookup):
        return io.ids, io.g
    assert isinstance(io, Rows)
    return io.parts


def io_of(frame: Frame, tensors: Sequence[Tensor]) -> LayerGradients:
    """Undo ``frame_of`` and ``tensors_of``."""
    if KINDS[frame.kind] == "product":
        return Product(tensors[0], tensors[1], bool(frame.extra))
    if KINDS[frame.kind] == "lookup":
        return Lookup(tensors[0], tensors[1], frame.extra)
    return Rows.of(tuple(tensors))


def silent(frame: Frame, n: int, widths: Sequence[int], device: torch.device) -> LayerGradients:
    """Return n samples that contribute nothing to a layer of this shape."""
    specs = replace(frame, n=n, s=1).specs(widths)
    return io_of(frame, [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in specs])


def shape_only(frame: Frame, widths: Sequence[int]) -> LayerGradients:
    """Return what a frame describes without any data, to plan with."""
    return io_of(frame, [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in frame.specs(widths)])
