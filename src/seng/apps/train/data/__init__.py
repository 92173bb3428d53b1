"""Data sets behind one small interface.

A data set is one file and one line in ``DATASETS``: how it is loaded, where it was found (or how to get it), and what
its samples look like.
"""

from __future__ import annotations

from ....errors import choose
from ..config import DataConfig
from ..errors import ConfigError
from .base import Dataset, Prefix, Signature, Source, Split, TensorSplit, epoch_batches, steps_per_epoch
from .cifar import CIFAR10
from .diamonds import DIAMONDS
from .digits import DIGITS
from .fashion import FASHION, FASHION_PICTURES
from .image_folders import IMAGENET
from .mnist import MNIST
from .prefetch import prefetched
from .topics import TOPICS

DATASETS: dict[str, Source] = {
    "cifar10": CIFAR10,
    "diamonds": DIAMONDS,
    "digits": DIGITS,
    "fashion-mnist": FASHION,
    "fashion-pictures": FASHION_PICTURES,
    "imagenet": IMAGENET,
    "mnist": MNIST,
    "python-topics": TOPICS,
}


def load_dataset(config: DataConfig) -> Dataset:
    """Load the data set that ``config`` names.

    Raises:
        SengError: no data set has that name, or it has fewer samples than asked for; a DataError if its files are
            absent or corrupt.
    """
    dataset = _source(config).load(config)
    wanted = config.train_samples
    if wanted is None:
        return dataset
    if not 1 <= wanted <= len(dataset.train):
        raise ConfigError(
            "load_dataset",
            "train_samples is out of range",
            expected=f"1 to {len(dataset.train)}, or none for all",
            got=wanted,
            fix="Correct data.train_samples",
        )
    return Dataset(Prefix(dataset.train, wanted), dataset.test)


def data_status(config: DataConfig) -> str:
    """Say in a few words where a data set is, or how to get it."""
    return _source(config).status(config)


def signature(config: DataConfig) -> Signature:
    """Return what the samples of a data set look like, whether it is here or not."""
    return _source(config).signature(config)


def _source(config: DataConfig) -> Source:
    source = choose(DATASETS, config.name, call="load_dataset", option="data set")
    for option, unset in (("augment", False), ("size", 0)):
        if (got := getattr(config, option)) != unset and option not in source.options:
            problem, fix = f"{config.name} has no use for data.{option}", "Leave it out"
            raise ConfigError("load_dataset", problem, expected=repr(unset), got=got, fix=fix)
    return source


__all__ = [
    "DATASETS",
    "Dataset",
    "Prefix",
    "Signature",
    "Source",
    "Split",
    "TensorSplit",
    "data_status",
    "epoch_batches",
    "load_dataset",
    "prefetched",
    "signature",
    "steps_per_epoch",
]
