"""Flat buffers in which tensors cross the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from ..per_sample import Spec

BUCKET = 2**25  # bytes of one flat buffer, as large as DistributedDataParallel's
ALIGNMENT = 8  # bytes: every tensor of a parcel starts at a multiple, so that it can be viewed in its own dtype


def parcel_bytes(specs: Sequence[Spec]) -> int:
    """Return the bytes of a parcel of tensors of these shapes and dtypes."""
    return sum(_padded(prod(shape) * dtype.itemsize) for shape, dtype in specs)


def pack(tensors: Iterable[Tensor], specs: Sequence[Spec], device: torch.device) -> Tensor:
    """Copy tensors into one buffer of bytes, rounded to the dtypes that are announced."""
    flat = torch.empty(parcel_bytes(specs), dtype=torch.uint8, device=device)
    for part, tensor in zip(_parts(flat, specs), tensors, strict=True):
        part.copy_(tensor)
    return flat


def unpack(flat: Tensor, specs: Sequence[Spec]) -> list[Tensor]:
    """Return views of the tensors that ``pack`` copied."""
    return list(_parts(flat, specs))


def buckets(sizes: Sequence[int], limit: int = BUCKET) -> list[range]:
    """Cut a sequence of sizes into runs of at most ``limit`` together, or of one element that is larger."""
    runs, start, total = [], 0, 0
    for k, size in enumerate(sizes):
        if k > start and total + size > limit:
            runs.append(range(start, k))
            start, total = k, 0
        total += size
    return [*runs, range(start, len(sizes))] if sizes else []


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _parts(flat: Tensor, specs: Sequence[Spec]) -> Iterator[Tensor]:
    start = 0
    for shape, dtype in specs:
        nbytes = prod(shape) * dtype.itemsize
        yield flat[start : start + nbytes].view(dtype).view(shape)
        start += _padded(nbytes)
