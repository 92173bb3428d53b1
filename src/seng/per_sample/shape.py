"""The shape of what a layer captured: costs, plans and messages between ranks follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

KINDS = ("absent", "product", "lookup", "rows")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
NUMBERS = 9  # that tell a shape to other ranks
Spec = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor


@dataclass(frozen=True)
class Shape:
    """Shape of one layer, or of one block, on one batch.

    Args:
        kind: That of the layer, "absent" where it was not used, "tied" of a block whose modules share a parameter.
        n: Samples.
        p: Parameters.
        c: Groups.
        s: Positions.
        d_in: Features in, of one group.
        d_out: Features out, of one group.
        inputs: Dtype of the inputs, or of the indices.
        grads: Dtype of the output gradients, or of the rows.
        itemsize: Bytes of a number of curvature.
        members: Of each of those modules.
    """

    kind: str = "absent"
    n: int = 0
    p: int = 0
    c: int = 1
    s: int = 1
    d_in: int = 1
    d_out: int = 1
    inputs: torch.dtype = torch.float32
    grads: torch.dtype = torch.float32
    itemsize: int = 4
    members: tuple[Shape, ...] = ()

    @staticmethod
    def of_block(shapes: Sequence[Shape], itemsize: int, expanded: int | None, tied: bool = True) -> Shape:
        """Return the shape of a whole block, where tied modules stand side by side.

        Args:
            shapes: Of what its modules captured.
            itemsize: Bytes of a number.
            expanded: How many positions are kept, each a sample, at least one for each sample; None: positions are
                summed.
            tied: Whether several parts are modules that share a parameter; else they are a weight and a bias whose
                gradients come apart, of one layer.
        """
        shapes = tuple(replace(shape, itemsize=itemsize) for shape in shapes)
        first = shapes[0]
        if not tied and [shape.kind for shape in shapes] == ["product", "rows"]:
            return replace(first, p=sum(shape.p for shape in shapes))
        if len(shapes) > 1:
            return replace(first, kind="tied", members=shapes)
        if expanded is not None and first.kind != "rows":
            return replace(first, n=min(first.n * first.s, max(first.n, expanded)), s=1)
        return first

    @staticmethod
    def of_numbers(numbers: Sequence[int]) -> Shape:
        """Undo ``numbers``."""
        kind, *sizes, inputs, grads = numbers
        return Shape(KINDS[kind], *sizes, inputs=DTYPES[inputs], grads=DTYPES[grads])

    def numbers(self) -> tuple[int, ...]:
        """Return the shape of one layer as integers."""
        dtypes = DTYPES.index(self.inputs), DTYPES.index(self.grads)
        return KINDS.index(self.kind), self.n, self.p, self.c, self.s, self.d_in, self.d_out, *dtypes

    @property
    def bias(self) -> bool:
        """Whether a product has a bias."""
        return self.p > self.c * self.d_in * self.d_out

    @property
    def vocabulary(self) -> int:
        """Rows of the weight of a lookup."""
        return self.p // self.d_out

    def specs(self, widths: Sequence[int]) -> list[Spec]:
        """Return shapes and dtypes of the tensors captured; ``widths`` are the sizes of the layer's parameters."""
        if self.kind == "product":
            sides = (self.c, self.n, self.s)
            return [((*sides, self.d_in), self.inputs), ((*sides, self.d_out), self.grads)]
        if self.kind == "lookup":
            return [((self.n, self.s), self.inputs), ((self.n, self.s, self.d_out), self.grads)]
        return [((self.n, width), self.grads) for width in widths] if self.kind == "rows" else []

    def __str__(self) -> str:
        """Return what crosses the layer: samples n, positions s, features in and out of a group; or parameters p."""
        if self.members:
            return " + ".join(map(str, self.members))
        if self.kind == "rows":
            return f"n {self.n}, p {self.p}"
        sides = f"{self.vocabulary} rows of {self.d_out}" if self.kind == "lookup" else f"{self.d_in} -> {self.d_out}"
        groups = f", {self.c} groups" if self.c > 1 else ""
        return f"n {self.n}, s {self.s}, {sides}{groups}"

    @property
    def backward_flops(self) -> float:
        """Weight and input gradients of the block, the unit that costs are compared with."""
        if self.members:
            return sum(member.backward_flops for member in self.members)
        weight = 4.0 * self.c * self.n * self.s * self.d_in * self.d_out
        return weight if self.kind == "product" else 8.0 * self.n * self.s * max(self.p, self.d_out)
