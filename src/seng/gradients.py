"""The model's gradients in one step, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from .blocks import Block, Layout
from .per_sample import Grads
from .wrappers import Cut, own_part

FULL_PRECISION = (torch.float32, torch.float64)


@dataclass
class BlockGradients:
    """The gradients of one block.

    Args:
        held: This rank's ``.grad`` of each parameter, or None.
        values: The same as contiguous tensors of the compute dtype, zeros for None. Nothing is copied where that is so
            already.
        square: |g|^2, 0-d.
    """

    held: list[Tensor | None]
    values: Grads
    square: Tensor

    @classmethod
    def of(cls, block: Block, held: list[Tensor | None], whole: bool = False) -> BlockGradients:
        """Return the gradients of a block; ``whole``: of all ranks, where parameters are cut among them."""
        dtype, values, square = torch.promote_types(block.parameters[0].dtype, torch.float32), [], None
        for p, x in zip(block.parameters, held, strict=True):
            if x is None:
                like = p if whole else own_part(p)
                value = torch.zeros(like.shape, dtype=dtype, device=like.device)
            else:
                value = x.to(dtype).contiguous()
            values.append(value)
            flat = value.view(-1)
            own = torch.dot(flat, flat)
            square = own if square is None else square + own
        assert square is not None
        return cls(held, tuple(values), square)

    @property
    def present(self) -> list[Tensor]:
        """The ``.grad`` tensors without those that are None."""
        return [x for x in self.held if x is not None]

    def whole(self, block: Block, given: Sequence[Tensor]) -> BlockGradients:
        """Return the gradients of all ranks, where the parameters are cut among them."""
        taken = iter(given)
        return BlockGradients.of(block, [None if x is None else next(taken) for x in self.held], whole=True)

    def write_back(self) -> None:
        """Copy the values into ``.grad`` where they are not there already, and let go of them."""
        for target, x in zip(self.held, self.values, strict=True):
            if target is not None and target.data_ptr() != x.data_ptr():
                target.copy_(x.view_as(target))
        self.values = ()


@dataclass
class Gradients:
    """All gradients of one step.

    Args:
        blocks: Of each block that has one, by name.
        passing: Those that no block holds.
    """

    blocks: dict[str, BlockGradients] = field(default_factory=dict)
    passing: list[Tensor] = field(default_factory=list)

    def finite(self, others: Sequence[Tensor] = ()) -> Tensor:
        """Return a 0-d bool: no gradient, and none of the other 0-d tensors, is NaN or inf."""
        first, *rest = *(own.square for own in self.blocks.values()), *map(square, self.passing), *others
        rest = [x if x.dtype is first.dtype and x.device == first.device else x.to(first) for x in rest]
        return torch.stack([first, *rest]).sum().isfinite()

    def cuts(self, layout: Layout) -> dict[str, list[Cut]]:
        """Return how the gradients present are cut among the ranks; empty where they are whole."""
        cut = {name: layout.blocks[name] for name in self.blocks if layout.blocks[name].cuts}
        return {
            name: [part for part, x in zip(block.cuts, self.blocks[name].held, strict=True) if x is not None]
            for name, block in cut.items()
        }


def collect(layout: Layout) -> Gradients:
    """Return what is in ``.grad``.

    Sparse gradients are made dense: a direction also reaches rows of a table that this batch did not look up.
    """
    blocks = {}
    for name, block in layout.blocks.items():
        held = [p.grad for p in block.parameters]
        if any(x is not None and (type(x) is not Tensor or x.layout is not torch.strided) for x in held):
            held = [None if p.grad is None else _dense(p) for p in block.parameters]
        if any(x is not None for x in held):
            blocks[name] = BlockGradients.of(block, held)
    return Gradients(blocks, [_dense(p) for p in layout.passing.values() if p.grad is not None])


def _dense(p: Tensor) -> Tensor:
    """Return this rank's part of a parameter's gradient, made dense."""
    assert p.grad is not None
    if p.grad.layout is not torch.strided:
        p.grad = p.grad.to_dense()
    return p.grad if type(p.grad) is Tensor else own_part(p.grad)


def lacking(layout: Layout) -> list[str]:
    """Return the names of blocks' parameters that have no gradient."""
    return [
        name
        for block in layout.blocks.values()
        for name, p in zip(block.parameter_names, block.parameters, strict=True)
        if p.grad is None
    ]


def square(x: Tensor) -> Tensor:
    """Return x.x, at least in float32; NaN or inf where x holds one."""
    x = torch.view_as_real(x) if x.is_complex() else x
    flat = x.reshape(-1) if x.dtype in FULL_PRECISION else x.reshape(-1).float()
    return torch.dot(flat, flat)


def squared(grads: Grads) -> Tensor:
    """Return g.g of one block."""
    return reduce(torch.add, map(square, grads))
