"""Shapes of blocks, from which costs are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .per_sample import LayerGradients, Lookup, Product


@dataclass(frozen=True)
class Size:
    """Shape of one block on one batch."""

    kind: str
    n: int
    p: int
    c: int = 1
    s: int = 1
    d_in: int = 1
    d_out: int = 1
    itemsize: int = 4
    members: tuple[Size, ...] = ()

    @staticmethod
    def of_block(ios: Sequence[LayerGradients], itemsize: int, expanded: int | None, tied: bool = True) -> Size:
        """Read the shape of a whole block, where tied modules stand side by side.

        Args:
            ios: What its modules captured.
            itemsize: Bytes of a number.
            expanded: How many positions are kept, each a sample, at least one for each sample; None: positions are
                summed.
            tied: Whether several parts are modules that share a parameter; else they are a weight and a bias whose
                gradients come apart, of one layer.
        """
        sizes = [Size.of(io, itemsize) for io in ios]
        first = sizes[0]
        if not tied and [size.kind for size in sizes] == ["product", "rows"]:
            return replace(first, p=sum(size.p for size in sizes))
        if len(sizes) > 1:
            return replace(first, kind="tied", members=tuple(sizes))
        if expanded is not None and first.kind != "rows":
            return replace(first, n=min(first.n * first.s, max(first.n, expanded)), s=1)
        return first

    @staticmethod
    def of(io: LayerGradients, itemsize: int = 4) -> Size:
        """Read the shape off what a layer captured."""
        p = sum(rows * columns for rows, columns in io.shapes)
        if isinstance(io, Product):
            c, n, s, d_out = io.g.shape
            return Size("product", n, p, c, s, io.d_in, d_out, itemsize)
        if isinstance(io, Lookup):
            return Size("lookup", io.n, p, 1, io.g.shape[1], 1, io.g.shape[2], itemsize)
        return Size("rows", io.n, p, itemsize=itemsize)

    @property
    def shape(self) -> str:
        """What crosses the layer: samples n, positions s, features in and out of a group; or parameters p."""
        if self.members:
            return " + ".join(member.shape for member in self.members)
        if self.kind == "rows":
            return f"n {self.n}, p {self.p}"
        sides = (
            f"{self.p // self.d_out} rows of {self.d_out}" if self.kind == "lookup" else f"{self.d_in} -> {self.d_out}"
        )
        groups = f", {self.c} groups" if self.c > 1 else ""
        return f"n {self.n}, s {self.s}, {sides}{groups}"

    @property
    def backward_flops(self) -> float:
        """Weight and input gradients of the block, the unit that costs are compared with."""
        if self.members:
            return sum(member.backward_flops for member in self.members)
        weight = 4.0 * self.c * self.n * self.s * self.d_in * self.d_out
        return weight if self.kind == "product" else 8.0 * self.n * self.s * max(self.p, self.d_out)
