"""Python's documentation topics: windows of one text, each beside itself one character on."""

from __future__ import annotations

import hashlib
import sys

import pytest
import torch

from seng.apps.train import data
from seng.apps.train.config import DataConfig
from seng.apps.train.data.topics import TextSplit, topics_text
from seng.apps.train.errors import DataError
from seng.errors import SengError

TEXT = torch.arange(100)  # each character is its place


@pytest.mark.parametrize("draw", range(5))
@pytest.mark.parametrize("shifted", [True, False])
def test_windows_partition_the_text_and_targets_follow(shifted: bool, draw: int):
    split = TextSplit(TEXT, 8, shifted)
    inputs, targets = split.batch(torch.arange(len(split)), draw)
    assert inputs.shape == targets.shape == ((100 - 8) // 8, 8)
    assert torch.equal(targets, inputs + 1)
    first = int(inputs[0, 0])
    assert torch.equal(inputs.flatten(), torch.arange(first, first + inputs.numel()))
    assert 0 <= first < 8 if shifted else first == 0


def test_windows_shift_with_the_draw_and_with_nothing_else():
    split = TextSplit(TEXT, 8, shifted=True)
    starts = [int(split.batch(torch.tensor([0]), draw)[0][0, 0]) for draw in range(50)]
    assert set(starts) == set(range(8))
    torch.manual_seed(5)
    assert [int(split.batch(torch.tensor([0]), draw)[0][0, 0]) for draw in range(50)] == starts


@pytest.mark.parametrize("length", [1, 7, 50])
def test_windows_stay_inside_the_text(length: int):
    split = TextSplit(TEXT, length, shifted=True)
    last = torch.tensor([len(split) - 1])
    assert max(int(split.batch(last, draw)[1].max()) for draw in range(100)) <= 99


def test_topics_are_the_whole_text_cut_in_nine_to_one():
    text, config = topics_text(), DataConfig("python-topics", size=64)
    dataset, characters = data.load_dataset(config), sorted(set(text))
    assert data.signature(config) == data.Signature((64,), classes=len(characters), texts=True)
    assert isinstance(dataset.train, TextSplit)
    assert isinstance(dataset.test, TextSplit)
    assert len(dataset.test.text) == len(text) // 10
    joined = torch.cat((dataset.train.text, dataset.test.text)).tolist()
    assert "".join(characters[number] for number in joined) == text


def test_topics_status_names_python_and_the_text():
    digest = hashlib.sha256(topics_text().encode()).hexdigest()
    version = ".".join(map(str, sys.version_info[:3]))
    assert data.data_status(DataConfig("python-topics")) == f"comes with Python {version}, sha256 {digest[:12]}"


def test_topics_have_a_default_length_and_refuse_others():
    assert data.signature(DataConfig("python-topics")).shape == (128,)
    with pytest.raises(SengError, match="longer than the text for testing.*got 30000.*Lower data.size"):
        data.load_dataset(DataConfig("python-topics", size=30_000))
    with pytest.raises(SengError, match="size is out of range.*got -1"):
        data.load_dataset(DataConfig("python-topics", size=-1))


def test_topics_absent_says_so(monkeypatch):
    topics_text.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="no documentation topics.*whole standard library"):
        data.load_dataset(DataConfig("python-topics"))
    assert data.data_status(DataConfig("python-topics")).startswith("absent")
