"""The digits are scikit-learn's, found without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from seng.apps.train.config import DataConfig
from seng.apps.train.data import digits


def test_table_is_that_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    table = torch.from_numpy(digits._table())
    assert torch.equal(table[:, :64], torch.from_numpy(pixels))
    assert torch.equal(table[:, 64].long(), torch.from_numpy(labels))


def test_table_comes_through_scikit_learn_where_its_file_is_elsewhere(monkeypatch: pytest.MonkeyPatch):
    whole = digits.load_digits(DataConfig("digits")).train
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    other = digits.load_digits(DataConfig("digits")).train
    assert all(map(torch.equal, whole.batch(torch.arange(1347)), other.batch(torch.arange(1347))))


def test_digits_are_loaded_without_importing_scikit_learn():
    code = (
        "import sys; from seng.apps.train.config import DataConfig; from seng.apps.train.data import load_dataset\n"
        "load_dataset(DataConfig('digits')); print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
