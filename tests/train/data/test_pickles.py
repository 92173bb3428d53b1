"""Pickles: those of Python 2 and of numpy are read, damaged ones named, harmful ones refused before anything runs."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.apps.train.data.pickles import ADMITTED, read_pickle
from seng.apps.train.errors import DataError

from .cifar_files import python_batch, samples

MEBIBYTE = 2**20


def test_read_pickle_reads_what_python_2_wrote():
    labels, pixels = samples("data_batch_2", 5)
    batch = read_pickle(python_batch(labels, pixels, "training batch 2 of 5"), "it")
    assert batch["batch_label"] == "training batch 2 of 5"
    assert batch["labels"] == labels.tolist()
    assert np.array_equal(batch["data"], pixels)
    assert batch["filenames"][4] == "picture_s_000004.png"


@pytest.mark.parametrize("protocol", [3, 4])
def test_read_pickle_reads_what_numpy_writes(protocol: int):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    batch = read_pickle(pickle.dumps({b"data": pixels, "more": [1, (2.5, None)]}, protocol=protocol), "it")
    assert np.array_equal(batch["data"], pixels)
    assert batch["more"] == [1, (2.5, None)]


class Calls:
    """Pickled, it is a call of anything with anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_read_pickle_runs_nothing(tmp_path: Path, protocol: int):
    victim = tmp_path / "victim"
    harmful = {"data": np.zeros(3, dtype=np.uint8), "labels": Calls(os.mkdir, str(victim))}
    content = pickle.dumps({"labels": harmful["labels"]}, protocol=protocol)
    with pytest.raises(DataError, match=r"some file asks for what no data need.*got 'posix.mkdir'.*harmful code"):
        read_pickle(content, "some file")
    assert not victim.exists()
    pickle.loads(content)  # the same bytes do harm where they are trusted
    assert victim.exists()


NAMES = {
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(S'a'\nS'b'\ntR.",
    "numpy's scalar": b"cnumpy.core.multiarray\nscalar\n.",
    "numpy's load": b"cnumpy\nload\n.",
    "a submodule's name": b"cnumpy\ncore.multiarray._reconstruct\n.",
    "an old instance": b"(S'true'\nios\nsystem\n.",
    "an old object": b"(cos\nsystem\nS'true'\no.",
    "a name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("content", NAMES.values(), ids=NAMES.keys())
def test_read_pickle_refuses_every_other_name(content: bytes):
    with pytest.raises(DataError, match=r"it asks for what no data need: expected arrays and plain containers"):
        read_pickle(content, "it")


WRONG = {
    "floats": (pickle.dumps({"data": np.zeros(3)}, protocol=4), "an array of type 'f8', not u1"),
    "objects": (pickle.dumps({"data": np.array([None])}, protocol=4), "an array of type 'O8', not u1"),
    "by columns": (
        pickle.dumps({"data": np.asfortranarray(np.eye(3, dtype=np.uint8))}, protocol=4),
        "not of bytes row by row",
    ),
    "another size": (python_batch(*samples("test_batch", 2), "t").replace(b"K\x02M\x00", b"K\x03M\x00"), "6144 bytes"),
    "a persistent name": (b"\x80\x02U\x01aQ.", "persistent"),
    "cut": (python_batch(*samples("test_batch", 2), "t")[:-50], "unreadable"),
    "empty": (b"", "EOFError"),
    "a list": (b"\x80\x02].", "not the pickle wanted: expected a dictionary, got 'list'"),
    "a set attribute": (b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.", "unreadable"),
    "an array unmade": (b"\x80\x02cnumpy\ndtype\n(tR.", "unreadable"),
}


@pytest.mark.parametrize(("content", "match"), WRONG.values(), ids=WRONG.keys())
def test_read_pickle_names_the_file_of_a_wrong_pickle(content: bytes, match: str):
    with pytest.raises(DataError, match=f"it is .*{match}"):
        read_pickle(content, "it")


WHOLE = python_batch(*samples("test_batch", 2), "testing batch 1 of 1")
PIXELS = samples("test_batch", 2)[1].tobytes()
PROGRAM = [place for place in range(len(WHOLE)) if not 0 <= place - WHOLE.index(PIXELS) < len(PIXELS)]


@given(changes=st.dictionaries(st.sampled_from(PROGRAM), st.integers(0, 255), min_size=1, max_size=3))
@settings(deadline=None)  # a busy machine, nothing else
def test_read_pickle_of_damaged_bytes_is_a_dictionary_or_an_error(changes: dict[int, int]):
    content = bytearray(WHOLE)
    for place, value in changes.items():
        content[place] = value
    with suppress(DataError):
        assert isinstance(read_pickle(bytes(content), "it"), dict)


def test_read_pickle_takes_no_memory_for_what_is_not_there():
    tracemalloc.start()
    try:
        assert read_pickle(b"\x80\x02}r\x00\x00\x00\x04.", "it") == {}  # remembered as number 2^26
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


def _doubled(make: bytes, levels: int = 100) -> bytes:
    """Return the opcodes of a container of a container and itself, and so on: 2^levels of them to walk through."""
    steps = (b"(" + b"h%c" % k + b"h%c" % k + make + b"q%c0" % (k + 1) for k in range(levels))
    return b")q\x00" + b"0" + b"".join(steps) + b"h%c" % levels


HIDDEN = {
    "as the type of an array": b"\x80\x02}U\x04datacnumpy\ndtype\n(" + _doubled(b"t") + b"tRs.",
    "as the shape of an array": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n(tR(K\x01"
    + _doubled(b"t")
    + b"cnumpy\ndtype\n(U\x02u1tR\x89U\x00tbs.",
    "as a key": b"\x80\x02}" + _doubled(b"t") + b"K\x01s.",
    "as one of several keys": b"\x80\x02}(K\x01K\x01" + _doubled(b"t") + b"K\x01u.",
    "as a key of a whole dictionary": b"(" + _doubled(b"t") + b"K\x01d.",
    "in a set": b"\x80\x04\x8f(" + _doubled(b"t") + b"\x90.",
    "in a frozen set": b"\x80\x04(" + _doubled(b"t") + b"\x91.",
    "as a whole": _doubled(b"l") + b".",
    "in what is called": b"\x80\x02" + _doubled(b"t") + b")R.",
    "as attributes of what is admitted": b"\x80\x02cnumpy\ndtype\nN}U\x0b__setstate__" + _doubled(b"t") + b"s\x86b.",
}


@pytest.mark.parametrize("content", HIDDEN.values(), ids=HIDDEN.keys())
def test_read_pickle_walks_through_nothing_that_holds_itself_many_times(content: bytes):
    with pytest.raises(DataError, match="it is (unreadable|not the pickle wanted): expected .{,200}, got .{,200}Fetch"):
        read_pickle(content, "it")


def test_read_pickle_takes_no_memory_for_a_shape_alone():
    head = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n(tR(K\x01"
    tail = b"cnumpy\ndtype\n(U\x02u1tR\x89U\x00tbs."
    shapes = (
        b"]K\x00aJ\xff\xff\xff\x7f\x86",
        b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86",
        b"U\x01aJ\xff\xff\xff\x7f\x86",
    )
    tracemalloc.start()
    try:
        for shape in shapes:
            with pytest.raises(DataError, match="it is unreadable"):
                read_pickle(head + shape + tail, "it")
        with pytest.raises(DataError, match="it is unreadable"):
            read_pickle(b"\x80\x05\x96\x00\x00\x00\x40\x00\x00\x00\x00.", "it")  # a buffer of a gibibyte
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


def test_read_pickle_changes_no_class_of_ours():
    before = {name: dict(vars(kind)) for name, kind in ADMITTED.items() if isinstance(kind, type)}
    for name in ("dtype", "core.multiarray\n_reconstruct"):
        module = "numpy\n" if name == "dtype" else "numpy."
        content = b"\x80\x02c" + (module + name).encode() + b"\nN}U\x06valuesK\x01s\x86b."
        with pytest.raises(DataError, match="attributes for a class of ours"):
            read_pickle(content, "it")
    assert {name: dict(vars(kind)) for name, kind in ADMITTED.items() if isinstance(kind, type)} == before


@given(
    content=st.lists(st.sampled_from([bytes([code]) for code in pickle._Unpickler.dispatch]) | st.binary(max_size=3))
)
@settings(deadline=None)
def test_read_pickle_of_any_opcodes_is_a_dictionary_or_an_error(content: list[bytes]):
    with suppress(DataError):
        assert isinstance(read_pickle(b"".join(content) + b".", "it"), dict)
