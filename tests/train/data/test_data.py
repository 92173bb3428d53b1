"""Data sets: what is found, what is refused, and the order of an epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seng.apps.train import data
from seng.apps.train.config import DataConfig
from seng.apps.train.data import fashion
from seng.apps.train.errors import ConfigError, DataError
from seng.errors import SengError

from .fashion_files import images, labels, write_fashion


@given(
    samples=st.integers(1, 300),
    batch_size=st.integers(1, 400),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 50),
)
def test_epoch_batches_hold_every_sample_once_in_even_batches(samples, batch_size, seed, epoch):
    batches = data.epoch_batches(samples, batch_size, seed, epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(samples))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == data.steps_per_epoch(samples, batch_size)


def test_epoch_batches_depend_on_seed_and_epoch_only():
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(data.epoch_batches(100, 7, seed, epoch)).tolist()

    torch.manual_seed(1)
    first = order(3, 5)
    torch.manual_seed(2)
    assert order(3, 5) == first
    assert order(3, 6) != first
    assert order(4, 5) != first


def test_digits_are_split_without_overlap_and_standardised():
    dataset = data.load_dataset(DataConfig("digits"))
    assert (len(dataset.train), len(dataset.test)) == (1347, 450)
    inputs, targets = dataset.train.batch(torch.arange(1347))
    assert inputs.shape == (1347, 1, 8, 8)
    assert inputs.mean().abs() < 1e-5  # float32 rounding over 86,208 numbers
    assert (inputs.std() - 1).abs() < 1e-5
    assert sorted(targets.unique().tolist()) == list(range(10))
    assert "scikit-learn" in data.data_status(DataConfig("digits"))


def test_digits_test_samples_are_the_rest_of_the_set():
    from sklearn.datasets import load_digits

    _, every = load_digits(return_X_y=True)
    dataset = data.load_dataset(DataConfig("digits"))
    total = torch.zeros(10, dtype=torch.long)
    for split in (dataset.train, dataset.test):
        _, targets = split.batch(torch.arange(len(split)))
        total += torch.bincount(targets, minlength=10)
    assert total.tolist() == torch.bincount(torch.from_numpy(every)).tolist()


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("subfolder", ["", "fashion-mnist"])
def test_fashion_is_found_in_the_named_folder(tmp_path: Path, gzipped: bool, subfolder: str):
    write_fashion(tmp_path / subfolder, gzipped=gzipped)
    config = DataConfig("fashion-mnist", str(tmp_path))
    dataset = data.load_dataset(config)
    inputs, targets = dataset.train.batch(torch.tensor([11, 3]))
    assert inputs.shape == (2, 1, 28, 28)
    assert targets.tolist() == [1, 3]
    assert len(dataset.test) == 10
    assert data.data_status(config) == f"found in {tmp_path / subfolder}"


def test_fashion_is_standardised_by_its_training_pictures(tmp_path: Path):
    write_fashion(tmp_path)
    dataset = data.load_dataset(DataConfig("fashion-mnist", str(tmp_path)))
    inputs, _ = dataset.train.batch(torch.arange(20))
    raw = torch.tensor(list(images(20)[16:])).double()
    expected = (raw - raw.mean()) / raw.std()
    torch.testing.assert_close(inputs.flatten().double(), expected, rtol=1e-5, atol=1e-5)  # float32


def test_fashion_search_order_is_option_then_environment_then_debian(tmp_path: Path, monkeypatch):
    option, environment, debian = (write_fashion(tmp_path / name) for name in ("option", "env", "debian"))
    place = dataclasses.replace(fashion.PLACE, system=debian)
    monkeypatch.delenv("SENG_DATA", raising=False)
    assert place.find(DataConfig("fashion-mnist")) == debian
    monkeypatch.setenv("SENG_DATA", str(environment))
    assert place.find(DataConfig("fashion-mnist")) == environment
    assert place.find(DataConfig("fashion-mnist", str(option))) == option


def test_fashion_absent_says_how_to_get_it(tmp_path: Path):
    config = DataConfig("fashion-mnist", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"not here.*nowhere.*apt-get install dataset-fashion-mnist"):
        data.load_dataset(config)
    assert data.data_status(config) == "absent: apt-get install dataset-fashion-mnist"


WRONG = {
    "file missing": ({"test_labels": None}, "missing .*t10k-labels-idx1-ubyte"),
    "picture size": ({"train_images": images(20, size=27)}, r"train-images.*28 x 28.*\(20, 27, 27\)"),
    "length": ({"train_labels": labels(19)}, "train-labels.*expected 20 labels.*got 19"),
    "label": ({"test_labels": labels(9) + b"\0"}, "t10k-labels-idx1-ubyte.gz is truncated or wrongly sized"),
    "label above 9": ({"test_labels": labels(10)[:-1] + b"\x0a"}, "t10k-labels.*0 to 9, got 10"),
    "no samples": ({"train_images": images(0), "train_labels": labels(0)}, "train-labels.*got None"),
    "swapped": ({"train_images": labels(20)}, "train-images-idx3-ubyte.gz is not the IDX file wanted"),
}


@pytest.mark.parametrize(("changed", "match"), WRONG.values(), ids=WRONG.keys())
def test_fashion_names_the_wrong_file(tmp_path: Path, changed, match):
    write_fashion(tmp_path, **changed)
    with pytest.raises(DataError, match=match):
        data.load_dataset(DataConfig("fashion-mnist", str(tmp_path)))


def test_mnist_is_read_from_the_same_files_in_its_own_folder(tmp_path: Path):
    write_fashion(tmp_path / "mnist")
    config = DataConfig("mnist", str(tmp_path))
    dataset = data.load_dataset(config)
    assert (len(dataset.train), len(dataset.test)) == (20, 10)
    assert data.data_status(config) == f"found in {tmp_path / 'mnist'}"
    assert data.data_status(DataConfig("fashion-mnist", str(tmp_path))).startswith("absent")


def test_mnist_absent_says_which_files_it_wants(tmp_path: Path):
    with pytest.raises(DataError, match=r"MNIST is not here.*train- and t10k-\{images-idx3,labels-idx1\}-ubyte"):
        data.load_dataset(DataConfig("mnist", str(tmp_path)))


def test_unknown_data_set_lists_the_known():
    with pytest.raises(SengError, match=r"unknown data set.*fashion-mnist.*Did you mean 'digits'"):
        data.load_dataset(DataConfig("digit"))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (DataConfig("digits", augment=True), r"digits has no use for data.augment: expected False, got True"),
        (DataConfig("fashion-mnist", size=32), r"fashion-mnist has no use for data.size: expected 0, got 32"),
        (DataConfig("cifar10", size=64), r"cifar10 has no use for data.size"),
    ],
)
def test_data_set_refuses_a_setting_that_it_would_not_act_upon(config: DataConfig, match: str):
    for ask in (data.load_dataset, data.signature):
        with pytest.raises(ConfigError, match=match):
            ask(config)
