"""Texts that need no download: the documentation topics that ship inside Python, as one stream of characters."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from .base import Dataset, Signature, Source

DEFAULT_LENGTH = 128
TEST_SHARE = 10  # the last of so many equal parts of the text is for testing


@dataclass(frozen=True)
class TextSplit:
    """Windows of a text, one beside the other; the target of each character is the one after it.

    Attributes:
        text: the characters, as numbers.
        length: characters of a window.
        shifted: whether each draw moves all windows on by a number of characters below ``length``, so that a model
            does not always see the same cuts; an epoch still shows every character once.
    """

    text: Int[Tensor, " m"]
    length: int
    shifted: bool = False

    def __len__(self) -> int:
        """Return how many windows there are, whatever the shift."""
        return (len(self.text) - self.length) // self.length

    def batch(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[Int[Tensor, "n s"], Int[Tensor, "n s"]]:
        """Return some windows and, for each of their characters, the next."""
        shift = _shift(self.length, draw) if self.shifted else 0
        windows = self.text[(indices * self.length + shift).unsqueeze(1) + torch.arange(self.length + 1)]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _shift(length: int, draw: int) -> int:
    return int(torch.randint(length, (), generator=torch.Generator().manual_seed(draw)))


@cache
def topics_text() -> str:
    """Return all topics in the order of their names, an empty line between; it differs from Python to Python.

    Raises:
        DataError: this Python comes without its documentation topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "load_topics",
            "this Python has no documentation topics",
            expected="the standard module pydoc_data.topics",
            got=str(error),
            fix="Use a Python with its whole standard library",
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def fingerprint() -> str:
    """Return the sha256 of the text in UTF-8, in hex digits."""
    return hashlib.sha256(topics_text().encode()).hexdigest()


def load_topics(config: DataConfig) -> Dataset:
    """Load the text, its characters numbered in their order of code: nine tenths to train on, the rest to test on.

    Args:
        config: ``size`` is the length of a window (0: 128), ``augment`` shifts the training windows.

    Raises:
        ConfigError: the windows are longer than the text for testing.
        DataError: this Python comes without the text.
    """
    text = topics_text()
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    characters = torch.tensor([number[character] for character in text])
    held_out, length = len(text) // TEST_SHARE, _length(config)
    train = TextSplit(characters[:-held_out], length, shifted=config.augment)
    test = TextSplit(characters[-held_out:], length)
    if len(test) < 1:
        raise ConfigError(
            "load_topics",
            "the windows are longer than the text for testing",
            expected=f"a size of at most {held_out // 2}",
            got=length,
            fix="Lower data.size",
        )
    return Dataset(train, test)


def _length(config: DataConfig) -> int:
    if config.size < 0:
        fix = "Correct data.size"
        raise ConfigError("load_topics", "size is out of range", expected="0 or more", got=config.size, fix=fix)
    return config.size or DEFAULT_LENGTH


def topics_status(config: DataConfig) -> str:
    """Say which Python the text comes from, and its sha256's beginning; or that it is not there."""
    try:
        return f"comes with Python {platform.python_version()}, sha256 {fingerprint()[:12]}"
    except DataError:
        return "absent: this Python has no pydoc_data.topics"


TOPICS = Source(
    load_topics,
    topics_status,
    signature=lambda config: Signature((_length(config),), classes=len(set(topics_text())), texts=True),
    options=frozenset({"augment", "size"}),
)
