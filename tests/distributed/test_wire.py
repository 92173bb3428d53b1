"""Flat buffers."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from seng.distributed.wire import ALIGNMENT, buckets, pack, parcel_bytes, unpack

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SPECS = st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=5)


@given(specs=SPECS)
def test_parcel_there_and_back_is_the_same(specs: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    tensors = [torch.randint(100, shape).to(dtype) for shape, dtype in specs]
    flat = pack(tensors, specs, CPU)
    assert flat.nbytes == parcel_bytes(specs)
    for got, expected in zip(unpack(flat, specs), tensors, strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@given(specs=SPECS)
def test_parcel_is_aligned_and_little_larger_than_its_tensors(specs: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    least = sum(prod(shape) * dtype.itemsize for shape, dtype in specs)
    assert least <= parcel_bytes(specs) < least + ALIGNMENT * (len(specs) + 1)
    assert parcel_bytes(specs) % ALIGNMENT == 0


def test_parcel_rounds_to_what_was_announced() -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    spec = [((5,), torch.bfloat16)]
    assert torch.equal(unpack(pack([x], spec, CPU), spec)[0], x.bfloat16())


@given(sizes=st.lists(st.integers(0, 50)), limit=st.integers(1, 60))
def test_buckets_cover_everything_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    runs = buckets(sizes, limit)
    assert [k for run in runs for k in run] == list(range(len(sizes)))
    assert all(len(run) == 1 or sum(sizes[k] for k in run) <= limit for run in runs)
