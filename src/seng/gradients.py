"""The model's gradients, block by block, and whether they can be used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .blocks import Block, Layout
from .types import Grads


def block_gradients(layout: Layout) -> dict[str, Grads]:
    """Return each block's gradients as contiguous tensors of its compute dtype, without copies where possible."""
    grads = {}
    for name, block in layout.blocks.items():
        if any(p.grad is not None for p in block.parameters):
            grads[name] = tuple(
                (torch.zeros_like(p) if p.grad is None else p.grad).to(block.compute_dtype).contiguous()
                for p in block.parameters
            )
    return grads


def write_back(block: Block, grads: Grads) -> None:
    """Copy into ``.grad`` what is not there already."""
    for parameter, x in zip(block.parameters, grads, strict=True):
        if parameter.grad is not None and parameter.grad.data_ptr() != x.data_ptr():
            parameter.grad.copy_(x.view_as(parameter.grad))


def present(layout: Layout) -> dict[str, list[Tensor]]:
    """Return the blocks' own ``.grad`` tensors, without those that are None."""
    found = {name: [p.grad for p in block.parameters if p.grad is not None] for name, block in layout.blocks.items()}
    return {name: own for name, own in found.items() if own}


def passing(layout: Layout) -> list[Tensor]:
    """Return the gradients that no block holds."""
    return [p.grad for p in layout.passing.values() if p.grad is not None]


def square(x: Tensor) -> Tensor:
    """Return x.x, at least in float32; NaN or inf where x holds one."""
    values = x.coalesce().values() if x.is_sparse else x
    values = torch.view_as_real(values) if values.is_complex() else values
    flat = values.reshape(-1).to(torch.promote_types(values.dtype, torch.float32))
    return torch.dot(flat, flat)


def all_finite(values: Sequence[Tensor]) -> Tensor:
    """Return a 0-d bool: none of the 0-d tensors is NaN or inf."""
    return torch.stack([value.to(values[0]) for value in values]).sum().isfinite()
