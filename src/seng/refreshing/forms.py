"""Forms in which a block's samples travel between ranks: as captured, written out, or as low-rank products.

All ranks see everyone's frames, so what each sends is known to all without asking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..blocks import Block
from ..curvature import BlockParts, in_place
from ..distributed.parcels import DTYPES, KINDS, Frame, frame_of, io_of, silent, tensors_of
from ..distributed.wire import Spec, parcel_bytes
from ..estimators import Choice
from ..per_sample import LayerGradients, Product, Rows, join_batches, low_rank

CAPTURED, ROWS, LOW_RANK = "captured", "rows", "low-rank"
Framed = list[tuple[tuple[int, ...], Frame]]  # positions of a part's parameters in the block, and its frame


def form_of(block: Block, frames: Sequence[Mapping[int, Frame]], choice: Choice, positions: str) -> str:
    """Return the form with the fewest bytes over all ranks."""
    kinds = {(k, frame.kind) for own in frames for k, frame in own.items()}
    if len(kinds) != 1 or KINDS[next(iter(kinds))[1]] != "product" or positions == "expand":
        return CAPTURED
    (member, _), *_ = kinds
    if len(block.members[member][1]) < len(block.parameters):
        return CAPTURED
    other = ROWS if choice.form.wire_rank is None else LOW_RANK

    often, shapes = Counter(map(id, frames)), {id(own): own for own in frames}

    def total(form: str) -> int:
        sizes = {key: parcel_bytes(specs_of(block, framed(block, own, form, choice))) for key, own in shapes.items()}
        return sum(often[key] * nbytes for key, nbytes in sizes.items())

    return min((CAPTURED, other), key=total)


def framed(block: Block, own: Mapping[int, Frame], form: str, choice: Choice) -> Framed:
    """Return the frames of what one rank sends, from those of what it captured."""
    if form == CAPTURED:
        return [(block.members[k][1], own[k]) for k in sorted(own)]
    dtype = DTYPES.index(block.compute_dtype)
    found: Framed = []
    for k, frame in own.items():
        slots, rows = block.members[k][1], Frame(KINDS.index("rows"), frame.n, 1, 1, right=dtype)
        if form == ROWS or choice.form.wire_rank is None:
            found.append((slots, rows))
            continue
        rank = min(choice.form.wire_rank, frame.s, frame.d_in, frame.d_out)
        found.append((slots[:1], replace(frame, s=rank, extra=0, left=dtype, right=dtype)))
        found += [(slots[1:], rows)] if frame.extra else []
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


def rounded(parts: Framed, dtype: torch.dtype | None) -> Framed:
    """Return the frames with floating-point tensors in the dtype of the wire."""
    if dtype is None:
        return parts
    code = DTYPES.index(dtype)

    def sent(position: int) -> int:
        return code if DTYPES[position].is_floating_point else position

    return [(slots, replace(frame, left=sent(frame.left), right=sent(frame.right))) for slots, frame in parts]


def specs_of(block: Block, parts: Framed) -> list[Spec]:
    """Return shapes and dtypes of the tensors that travel."""
    return [spec for slots, frame in parts for spec in frame.specs(widths(block, slots))]


def received(block: Block, parts: Framed, tensors: Sequence[torch.Tensor]) -> BlockParts:
    """Return what one rank sent."""
    found, start = [], 0
    for slots, frame in parts:
        count = len(frame.specs(widths(block, slots)))
        found.append((io_of(frame, tensors[start : start + count]), slots))
        start += count
    return tuple(found)


def pooled(block: Block, by_rank: Sequence[BlockParts]) -> BlockParts:
    """Join the samples of all ranks; where one did not use a part that others did, its samples contribute nothing."""
    models: dict[tuple[tuple[int, ...], str], Frame] = {}
    for parts in by_rank:
        for io, slots in parts:
            models.setdefault((slots, type(io).__name__), frame_of(io))
    joined: list[tuple[LayerGradients, tuple[int, ...]]] = []
    for (slots, kind), frame in models.items():
        ios = []
        for parts in filter(None, by_rank):
            own = [io for io, places in parts if (places, type(io).__name__) == (slots, kind)]
            n, device = parts[0][0].n, tensors_of(parts[0][0])[0].device
            ios.append(own[0] if own else silent(frame, n, widths(block, slots), device))
        joined.append((join_batches(ios), slots))
    return tuple(joined)
