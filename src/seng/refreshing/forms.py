"""Forms in which a block's samples travel between ranks: as captured, written out, or as low-rank products.

All ranks see everyone's shapes, so what each sends is known to all without asking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..blocks import Block
from ..curvature import BlockParts, in_place
from ..distributed.wire import parcel_bytes
from ..estimators import Choice
from ..per_sample import LAYER_KINDS, LayerGradients, Product, Rows, Shape, Spec, join_batches, low_rank

CAPTURED, ROWS, LOW_RANK = "captured", "rows", "low-rank"
Parcel = list[tuple[tuple[int, ...], Shape]]  # positions of a part's parameters in the block, and its shape


def form_of(block: Block, by_rank: Sequence[Mapping[int, Shape]], choice: Choice, positions: str) -> str:
    """Return the form with the fewest bytes over all ranks."""
    kinds = {(k, shape.kind) for own in by_rank for k, shape in own.items()}
    if len(kinds) != 1 or next(iter(kinds))[1] != "product" or positions == "expand":
        return CAPTURED
    (member, _), *_ = kinds
    if len(block.members[member][1]) < len(block.parameters):
        return CAPTURED
    other = ROWS if choice.form.wire_rank is None else LOW_RANK

    often, different = Counter(map(id, by_rank)), {id(own): own for own in by_rank}

    def total(form: str) -> int:
        sizes = {key: parcel_bytes(specs_of(block, parcel(block, own, form, choice))) for key, own in different.items()}
        return sum(often[key] * nbytes for key, nbytes in sizes.items())

    return min((CAPTURED, other), key=total)


def parcel(block: Block, own: Mapping[int, Shape], form: str, choice: Choice) -> Parcel:
    """Return the shapes of what one rank sends, from those of what it captured."""
    if form == CAPTURED:
        return [(block.members[k][1], own[k]) for k in sorted(own)]
    dtype = block.compute_dtype
    found: Parcel = []
    for k, shape in own.items():
        slots = block.members[k][1]
        rows = Shape(Rows.kind, shape.n, sum(widths(block, slots)), grads=dtype)
        if form == ROWS or choice.form.wire_rank is None:
            found.append((slots, rows))
            continue
        rank, weight = min(choice.form.wire_rank, shape.s, shape.d_in, shape.d_out), shape.c * shape.d_in * shape.d_out
        found.append((slots[:1], replace(shape, p=weight, s=rank, inputs=dtype, grads=dtype)))
        found += [(slots[1:], rows)] if shape.bias else []
    return found


def parts_in_form(
    block: Block, own: Mapping[int, LayerGradients], form: str, choice: Choice, generator: torch.Generator
) -> BlockParts:
    """Return what one rank sends."""
    if form == CAPTURED:
        return in_place(block, own)
    found: list[tuple[LayerGradients, tuple[int, ...]]] = []
    for k, io in own.items():
        slots = block.members[k][1]
        assert isinstance(io, Product)
        if form == ROWS or choice.form.wire_rank is None:
            found.append((io.written_out(1.0, block.compute_dtype), slots))
            continue
        found.append((low_rank(io, choice.form.wire_rank, 1.0, block.compute_dtype, generator), slots[:1]))
        if io.bias:
            found.append((Rows.of((io.bias_rows(1.0, block.compute_dtype),)), slots[1:]))
    return tuple(found)


def widths(block: Block, slots: Sequence[int]) -> list[int]:
    """Return the sizes of some of a block's parameters."""
    return [block.parameters[k].numel() for k in slots]


def rounded(parts: Parcel, dtype: torch.dtype | None) -> Parcel:
    """Return the shapes with floating-point tensors in the dtype of the wire."""
    if dtype is None:
        return parts
    return [
        (slots, replace(shape, inputs=dtype if shape.inputs.is_floating_point else shape.inputs, grads=dtype))
        for slots, shape in parts
    ]


def specs_of(block: Block, parts: Parcel) -> list[Spec]:
    """Return shapes and dtypes of the tensors that travel."""
    return [spec for slots, shape in parts for spec in shape.specs(widths(block, slots))]


def received(block: Block, parts: Parcel, tensors: Sequence[torch.Tensor]) -> BlockParts:
    """Return what one rank sent."""
    found, start = [], 0
    for slots, shape in parts:
        count = len(shape.specs(widths(block, slots)))
        found.append((LAYER_KINDS[shape.kind].of_tensors(shape, tensors[start : start + count]), slots))
        start += count
    return tuple(found)


def pooled(block: Block, by_rank: Sequence[BlockParts]) -> BlockParts:
    """Join the samples of all ranks; where one did not use a part that others did, its samples contribute nothing."""
    models: dict[tuple[tuple[int, ...], str], Shape] = {}
    for parts in by_rank:
        for io, slots in parts:
            models.setdefault((slots, io.kind), io.shape)
    joined: list[tuple[LayerGradients, tuple[int, ...]]] = []
    for (slots, kind), shape in models.items():
        ios = []
        for parts in filter(None, by_rank):
            own = [io for io, places in parts if (places, io.kind) == (slots, kind)]
            ios.append(own[0] if own else _zeros(shape, parts[0][0], widths(block, slots)))
        joined.append((join_batches(ios), slots))
    return tuple(joined)


def _zeros(shape: Shape, beside: LayerGradients, sizes: Sequence[int]) -> LayerGradients:
    """Return samples that contribute nothing to a layer of this shape, as many as another part has."""
    device = beside.tensors[0].device
    specs = replace(shape, n=beside.n, s=1).specs(sizes)
    zeros = [torch.zeros(size, dtype=dtype, device=device) for size, dtype in specs]
    return LAYER_KINDS[shape.kind].of_tensors(shape, zeros)
