"""Files of torch.save: tensors and plain values are read as torch reads them; all else never reaches torch."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.pickles import load_tensors, require_tensors

from .pickled import HARMFUL, archive

MEBIBYTE = 2**20
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
TENSORS = st.builds(
    lambda dtype, shape, turned: torch.ones(shape, dtype=dtype).mT if turned else torch.ones(shape, dtype=dtype),
    st.sampled_from([*DTYPES, torch.uint16]), st.lists(st.integers(0, 3), min_size=2, max_size=3), st.booleans(),
)  # fmt: skip
LEAVES = TENSORS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.text(max_size=5) | st.integers()
STATES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner)
    | st.dictionaries(KEYS, inner).map(OrderedDict),
    max_leaves=8,
)  # fmt: skip


def alike(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor):
        return x.dtype == y.dtype and x.stride() == y.stride() and torch.equal(x, y)
    if isinstance(x, dict):
        return type(x) is type(y) and x.keys() == y.keys() and all(alike(x[key], y[key]) for key in x)
    if isinstance(x, list | tuple):
        return type(x) is type(y) and len(x) == len(y) and all(map(alike, x, y))
    return type(x) is type(y) and x == y


@settings(deadline=None)
@given(state=STATES)
def test_load_tensors_reads_what_torch_saves(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "state.pt"
    torch.save(state, path)
    assert alike(state, load_tensors(path))


def test_load_tensors_reads_the_state_of_a_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert load_tensors(tmp_path / "model.pt")._metadata == model.state_dict()._metadata  # pyright: ignore


@pytest.mark.parametrize("program", HARMFUL.values(), ids=HARMFUL.keys())
def test_require_tensors_refuses_what_only_claims_to_be_large(program: bytes) -> None:
    file = archive(program, {"archive/data/0": b"\0\0\0\0"})
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError, match="it asks for|UnpicklingError|TypeError"):
            require_tensors(file)
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "file",
    [archive(b"N.", packed=True), archive(b"N.", {"other/data.pkl": b"N."}), io.BytesIO(b"PK"), io.BytesIO()],
    ids=["packed", "two programs", "no archive", "empty"],
)
def test_require_tensors_refuses_other_archives(file: io.BytesIO) -> None:
    with pytest.raises(zipfile.BadZipFile, match="larger unpacked|not of torch.save|not a zip file"):
        require_tensors(file)


@given(
    content=st.lists(st.sampled_from([bytes([code]) for code in pickle._Unpickler.dispatch]) | st.binary(max_size=3))
)
@settings(deadline=None)
def test_require_tensors_of_any_opcodes_ends(content: list[bytes]) -> None:
    with suppress(pickle.UnpicklingError):
        assert require_tensors(archive(b"".join(content) + b".")) is None
