"""The model's gradients, block by block, and whether they can be used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .blocks import Block, Layout
from .types import Grads
from .wrappers import Cut, own_part


def block_gradients(layout: Layout) -> dict[str, Grads]:
    """Return each block's gradients, or this rank's part of them, as contiguous tensors of its compute dtype.

    Nothing is copied where that is so already.
    """
    held = {name: targets(block) for name, block in layout.blocks.items()}
    used = {name: own for name, own in held.items() if any(x is not None for x in own)}
    return {name: _as_grads(layout.blocks[name], own) for name, own in used.items()}


def densify(layout: Layout) -> None:
    """Make sparse gradients dense: a direction also reaches rows of a table that this batch did not look up."""
    for p in (*(p for block in layout.blocks.values() for p in block.parameters), *layout.passing.values()):
        if p.grad is not None and p.grad.layout is not torch.strided:
            p.grad = p.grad.to_dense()


def targets(block: Block) -> list[Tensor | None]:
    """Return this rank's ``.grad`` of each parameter."""
    return [None if p.grad is None else own_part(p.grad) for p in block.parameters]


def whole_gradients(block: Block, taken: Sequence[Tensor]) -> tuple[list[Tensor | None], Grads]:
    """Return whole gradients beside the parameters that have one, and all as tensors of the compute dtype."""
    given = iter(taken)
    held = [None if p.grad is None else next(given) for p in block.parameters]
    return held, _as_grads(block, held, whole=True)


def write_back(held: Sequence[Tensor | None], grads: Grads) -> None:
    """Copy into the tensors held what is not there already."""
    for target, x in zip(held, grads, strict=True):
        if target is not None and target.data_ptr() != x.data_ptr():
            target.copy_(x.view_as(target))


def present(layout: Layout) -> dict[str, list[Tensor]]:
    """Return this rank's ``.grad`` tensors of all blocks, without those that are None."""
    found = {name: [x for x in targets(block) if x is not None] for name, block in layout.blocks.items()}
    return {name: own for name, own in found.items() if own}


def lacking(layout: Layout) -> list[str]:
    """Return the names of blocks' parameters that have no gradient."""
    return [
        name
        for block in layout.blocks.values()
        for name, p in zip(block.parameter_names, block.parameters, strict=True)
        if p.grad is None
    ]


def cuts(layout: Layout) -> dict[str, list[Cut]]:
    """Return how the gradients of ``present`` are cut among the ranks; empty where they are whole."""
    blocks = {name: block for name, block in layout.blocks.items() if block.cuts}
    return {
        name: [cut for cut, p in zip(block.cuts, block.parameters, strict=True) if p.grad is not None]
        for name, block in blocks.items()
    }


def passing(layout: Layout) -> list[Tensor]:
    """Return the gradients that no block holds."""
    return [own_part(p.grad) for p in layout.passing.values() if p.grad is not None]


def square(x: Tensor) -> Tensor:
    """Return x.x, at least in float32; NaN or inf where x holds one."""
    values = x.coalesce().values() if x.is_sparse else x
    values = torch.view_as_real(values) if values.is_complex() else values
    flat = values.reshape(-1).to(torch.promote_types(values.dtype, torch.float32))
    return torch.dot(flat, flat)


def squared(grads: Grads) -> Tensor:
    """Return g.g of one block."""
    return sum(map(square, grads), grads[0].new_zeros(()))


def all_finite(values: Sequence[Tensor]) -> Tensor:
    """Return a 0-d bool: none of the 0-d tensors is NaN or inf."""
    return torch.stack([value.to(values[0]) for value in values]).sum().isfinite()


def _as_grads(block: Block, held: Sequence[Tensor | None], whole: bool = False) -> Grads:
    """Return contiguous tensors of the compute dtype, zeros for None."""
    likes = [p if whole else own_part(p) for p in block.parameters]
    return tuple(
        torch.zeros(like.shape, dtype=block.compute_dtype, device=like.device)
        if x is None
        else x.to(block.compute_dtype).contiguous()
        for like, x in zip(likes, held, strict=True)
    )
