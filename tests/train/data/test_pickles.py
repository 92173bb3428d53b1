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

from seng.train.data.pickles import read_pickle
from seng.train.errors import DataError

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
