"""CIFAR-10: both formats, as folders and as archives, give the same pictures; every kind of damage is named."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.apps.train import data
from seng.apps.train.config import DataConfig
from seng.apps.train.data import Dataset
from seng.apps.train.data.cifar import SCALE
from seng.apps.train.errors import DataError

from .cifar_files import (
    ARCHIVES,
    FOLDERS,
    TRAIN,
    Form,
    binary_batch,
    cifar_files,
    python_batch,
    samples,
    tar_gz,
    write_cifar,
)

EVERY = [("binary", False), ("binary", True), ("python", False), ("python", True)]
IDS = ["binary folder", "binary archive", "python folder", "python archive"]


def _load(folder: Path, augment: bool = False) -> Dataset:
    return data.load_dataset(DataConfig("cifar10", str(folder), augment=augment))


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    return SCALE(torch.from_numpy(pictures).view(-1, 3, 32, 32))


@pytest.mark.parametrize(("form", "archived"), EVERY, ids=IDS)
def test_cifar_holds_the_pictures_and_labels_of_its_files(tmp_path: Path, form: Form, archived: bool):
    place = write_cifar(tmp_path, form, archived=archived)
    dataset = _load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (20, 4)
    inputs, targets = dataset.train.batch(torch.arange(20))
    labels, pictures = (np.concatenate(parts) for parts in zip(*(samples(name, 4) for name in TRAIN), strict=True))
    assert targets.tolist() == labels.tolist()
    assert torch.equal(inputs, _pixels(pictures))
    inputs, targets = dataset.test.batch(torch.tensor([3, 1]))
    labels, pictures = samples("test_batch", 4)
    assert targets.tolist() == labels[[3, 1]].tolist()
    assert torch.equal(inputs, _pixels(pictures[[3, 1]]))
    assert data.data_status(DataConfig("cifar10", str(tmp_path))) == f"found in {place}"


def test_cifar_looks_like_its_signature(tmp_path: Path):
    write_cifar(tmp_path)
    known = data.signature(DataConfig("cifar10"))
    inputs, _ = _load(tmp_path).test.batch(torch.arange(4))
    assert inputs.shape == (4, *known.shape)
    assert (inputs.dtype, known.classes) == (torch.float32, 10)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar_is_found_below_the_named_folder(tmp_path: Path, below: str, archived: bool):
    write_cifar(tmp_path / below, archived=archived)
    assert len(_load(tmp_path).train) == 20


@pytest.mark.parametrize(("form", "archived"), EVERY, ids=IDS)
def test_cifar_is_found_where_it_is_named_itself(tmp_path: Path, form: Form, archived: bool):
    assert len(_load(write_cifar(tmp_path, form, archived=archived)).train) == 20


def test_cifar_varies_training_pictures_only(tmp_path: Path):
    write_cifar(tmp_path)
    plain, varied = _load(tmp_path), _load(tmp_path, augment=True)
    every = torch.arange(4)
    assert torch.equal(plain.test.batch(every, draw=5)[0], varied.test.batch(every, draw=5)[0])
    assert not torch.equal(plain.train.batch(every, draw=5)[0], varied.train.batch(every, draw=5)[0])


def test_cifar_absent_says_how_to_get_it(tmp_path: Path):
    config = DataConfig("cifar10", str(tmp_path))
    with pytest.raises(DataError, match=r"CIFAR-10 is not here.*cifar-10-binary.tar.gz.*--data-dir or SENG_DATA"):
        data.load_dataset(config)
    assert data.data_status(config).startswith("absent: cifar-10-binary.tar.gz or cifar-10-python.tar.gz from https")


LABELS, PICTURES = samples("data_batch_3", 4)
TITLE = "training batch 3 of 5"
BAD_BINARY = {
    "missing": (None, r"data_batch_3.bin is missing in .*expected the batches"),
    "cut": (binary_batch(LABELS, PICTURES)[:-1], r"data_batch_3.bin.* is cut short.*pictures of 3073 bytes, got 12291"),
    "cut after a picture": (binary_batch(LABELS[:3], PICTURES[:3]), r"data_batch_3.* is cut short: expected 4 pic.*3"),
    "empty": (b"", r"data_batch_3.bin.* is cut short"),
    "label": (
        binary_batch(LABELS + 7, PICTURES),
        r"data_batch_3.bin.* is mislabelled: expected labels from 0 to 9, got 10",
    ),
}
BAD_PYTHON = {
    "missing": (None, r"data_batch_3 is missing in "),
    "another batch": (
        python_batch(LABELS, PICTURES, "training batch 4 of 5"),
        r"data_batch_3.* is another batch: expected .*batch 3 of 5.*got 'training batch 4 of 5'",
    ),
    "cut": (python_batch(LABELS, PICTURES, TITLE)[:-9], r"data_batch_3.* is unreadable"),
    "fewer": (python_batch(LABELS[:3], PICTURES[:3], TITLE), r"data_batch_3.* is cut short: expected 4 pictures.*3"),
    "labels fewer": (
        python_batch(LABELS, PICTURES, TITLE).replace(b"K\x04K\x05e", b"K\x04e"),
        r"data_batch_3.* is mislabelled: expected 4 labels, one a picture, got 3",
    ),
    "label": (python_batch(LABELS + 7, PICTURES, TITLE), r"data_batch_3.* is mislabelled: expected labels from 0 to 9"),
    "width": (python_batch(LABELS, PICTURES[:, :3071], TITLE), r"data_batch_3.* is unreadable"),
    "no labels": (python_batch(LABELS, PICTURES, TITLE).replace(b"labels", b"lapels"), r"mislabelled.*got None"),
    "no data": (python_batch(LABELS, PICTURES, TITLE).replace(b"\x04data", b"\x04beta"), r"wrongly sized"),
    "harmful": (b"cos\nsystem\n(S'true'\ntR.", r"data_batch_3.* asks for what no data need.*'os.system'"),
    "not a pickle": (binary_batch(LABELS, PICTURES), r"data_batch_3.* is unreadable"),
}


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize(("content", "match"), BAD_BINARY.values(), ids=BAD_BINARY.keys())
def test_cifar_names_the_wrong_binary_batch(tmp_path: Path, content, match: str, archived: bool):
    place = write_cifar(tmp_path, "binary", archived=archived, data_batch_3=content)
    with pytest.raises(DataError, match=match) as caught:
        _load(tmp_path)
    assert str(place) in str(caught.value)


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize(("content", "match"), BAD_PYTHON.values(), ids=BAD_PYTHON.keys())
def test_cifar_names_the_wrong_python_batch(tmp_path: Path, content, match: str, archived: bool):
    place = write_cifar(tmp_path, "python", archived=archived, data_batch_3=content)
    with pytest.raises(DataError, match=match) as caught:
        _load(tmp_path)
    assert str(place) in str(caught.value)


WHOLE = tar_gz(FOLDERS["binary"], cifar_files("binary", 1))


@given(place=st.integers(0, len(WHOLE) - 1), change=st.integers(1, 255))
@settings(deadline=None, max_examples=50)
def test_cifar_in_an_archive_with_any_damage_is_named_or_the_same(place: int, change: int):
    content = bytearray(WHOLE)
    content[place] ^= change
    with TemporaryDirectory() as folder:
        archive = Path(folder, ARCHIVES["binary"])
        archive.write_bytes(WHOLE)
        right = _load(archive)
        archive.write_bytes(content)
        with suppress(DataError):
            for damaged, whole in zip(_all(_load(archive)), _all(right), strict=True):
                assert torch.equal(damaged, whole)


def _all(dataset: Dataset) -> tuple[torch.Tensor, ...]:
    return (*dataset.train.batch(torch.arange(len(dataset.train))), *dataset.test.batch(torch.arange(1)))


@pytest.mark.parametrize("form", ["binary", "python"])
@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_cifar_in_files_with_any_damage_is_named_or_of_the_right_shape(form: Form, data):
    files = {name: bytearray(content) for name, content in cifar_files(form, 1).items()}
    content = files[data.draw(st.sampled_from(sorted(files)))]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        with suppress(DataError):
            train, targets, test, _ = _all(_load(Path(folder)))
            assert (train.shape, test.shape) == ((5, 3, 32, 32), (1, 3, 32, 32))
            assert targets.max() <= 9


def test_cifar_that_is_no_archive_is_named(tmp_path: Path):
    (tmp_path / ARCHIVES["python"]).write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz is no whole archive"):
        _load(tmp_path)
