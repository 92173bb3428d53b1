"""Data sets behind one small interface: two splits, each giving the batch of any sample numbers.

A data set is one line in ``DATASETS``: how it is loaded, and where it was found (or how to get it).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import choose
from .config import DataConfig
from .errors import DataError
from .idx import read_idx

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
INSTALL_FASHION = "apt-get install dataset-fashion-mnist"
GET_FASHION = f"Install it with `{INSTALL_FASHION}`, or give its folder with --data-dir or SENG_DATA"


class Split(Protocol):
    """Samples that can be asked for by number."""

    def __len__(self) -> int:
        """Return how many samples there are."""
        ...

    def batch(self, indices: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of some samples, in the order asked."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split held in memory."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.targets)

    def batch(self, indices: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of some samples, in the order asked."""
        return self.inputs[indices], self.targets[indices]


@dataclass(frozen=True)
class Dataset:
    """A data set's two splits."""

    train: Split
    test: Split


@dataclass(frozen=True)
class Source:
    """How a data set is loaded, and a line that says whether it is there."""

    load: Callable[[DataConfig], Dataset]
    status: Callable[[DataConfig], str]


def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Split a shuffled epoch into batches of equal size, give or take one sample, none above ``batch_size``.

    The order depends on ``seed`` and ``epoch`` only, so a run can continue from any step.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator).tensor_split(steps_per_epoch(samples, batch_size))


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of batches in an epoch."""
    return math.ceil(samples / batch_size)


def in_order(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split's batches in order, for evaluation."""
    for indices in torch.arange(len(split)).split(batch_size):
        yield split.batch(indices)


def load_dataset(config: DataConfig) -> Dataset:
    """Load the data set that ``config`` names.

    Raises:
        SengError: no data set has that name; a DataError if its files are absent or corrupt.
    """
    return _source(config).load(config)


def data_status(config: DataConfig) -> str:
    """Say in a few words where a data set is, or how to get it."""
    return _source(config).status(config)


def _source(config: DataConfig) -> Source:
    return choose(DATASETS, config.name, call="load_dataset", option="data set")


def _standardised(
    train: Float[Tensor, "n h w"], train_targets: Tensor, test: Float[Tensor, "m h w"], test_targets: Tensor
) -> Dataset:
    """Give grey pictures a channel, and the training pictures mean 0 and deviation 1."""
    mean, deviation = train.mean(), train.std()
    pictures = [((part - mean) / deviation).unsqueeze(1) for part in (train, test)]
    return Dataset(TensorSplit(pictures[0], train_targets), TensorSplit(pictures[1], test_targets))


def load_digits(config: DataConfig) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,347 to train on and 450 to test on.

    The split is one fixed random permutation, the same for every seed.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # takes a second: only when asked for

    pixels, labels = sklearn_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().reshape(-1, 8, 8)[order]
    targets = torch.from_numpy(labels).long()[order]
    return _standardised(images[:1347], targets[:1347], images[1347:], targets[1347:])


def find_fashion(config: DataConfig) -> Path | None:
    """Return the folder of Fashion-MNIST's four files, or None.

    A folder that was named (``data_dir``, else the environment's SENG_DATA) is the only one searched, with
    its subfolder fashion-mnist; without a name it is Debian's.
    """
    named = config.data_dir or os.environ.get("SENG_DATA")
    folders = [Path(named), Path(named, "fashion-mnist")] if named else [DEBIAN_FASHION]
    return next((folder for folder in folders if _idx_file(folder, "train-images-idx3-ubyte")), None)


def _idx_file(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _fashion_split(folder: Path, prefix: str) -> tuple[Float[Tensor, "n h w"], Int[Tensor, " n"]]:
    images, labels = (
        read_idx(_required(folder, f"{prefix}-{kind}-idx{rank}-ubyte"), rank)
        for kind, rank in (("images", 3), ("labels", 1))
    )
    if images.shape[1:] != (28, 28):
        raise _wrong(folder, f"{prefix}-images", "pictures of 28 x 28", tuple(images.shape))
    if len(images) != len(labels):
        raise _wrong(folder, f"{prefix}-labels", f"{len(images)} labels, one a picture", len(labels))
    if len(labels) == 0 or labels.max() > 9:
        raise _wrong(folder, f"{prefix}-labels", "labels from 0 to 9", int(labels.max()) if len(labels) else None)
    return images.float(), labels.long()


def _required(folder: Path, name: str) -> Path:
    path = _idx_file(folder, name)
    if path is None:
        raise _wrong(folder, name, f"{name} or {name}.gz", None)
    return path


def _wrong(folder: Path, name: str, expected: str, got: object) -> DataError:
    return DataError("load_fashion", f"bad or missing {folder / name}", expected=expected, got=got, fix=GET_FASHION)


def load_fashion(config: DataConfig) -> Dataset:
    """Load Fashion-MNIST from its four IDX files: 60,000 pictures to train on and 10,000 to test on."""
    folder = find_fashion(config)
    if folder is None:
        named = config.data_dir or os.environ.get("SENG_DATA") or str(DEBIAN_FASHION)
        problem = "Fashion-MNIST is not here"
        raise DataError("load_fashion", problem, expected="a folder with its files", got=named, fix=GET_FASHION)
    return _standardised(*_fashion_split(folder, "train"), *_fashion_split(folder, "t10k"))


def fashion_status(config: DataConfig) -> str:
    """Say where Fashion-MNIST was found, or how to get it."""
    folder = find_fashion(config)
    return f"found in {folder}" if folder else f"absent: {INSTALL_FASHION}"


DATASETS: dict[str, Source] = {
    "digits": Source(load_digits, lambda config: "comes with scikit-learn"),
    "fashion-mnist": Source(load_fashion, fashion_status),
}
