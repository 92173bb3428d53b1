"""Small tasks that a few dozen steps of SGD learn. A batch is a tuple of tensors with samples in dimension 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

VOCABULARY, LENGTH, CLASSES = 32, 8, 4
START, END, PAD = 0, 1, 2  # tokens below CONTENT have these meanings and no content
CONTENT = 4
NOISE = 0.5
PICTURE, SERIES, FLAT = (3, 8, 8), (LENGTH, 6), 12  # shapes of inputs

Batch = tuple[Tensor, ...]
Task = Callable[[int, Generator], Batch]


def labels(n: int, generator: Generator) -> Tensor:
    return torch.randint(CLASSES, (n,), generator=generator)


def templates(*shape: int) -> Tensor:
    """Return one fixed input a class."""
    return torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(len(shape)))


def pictures(*shape: int) -> Task:
    """Inputs of a shape and their classes: the class's template with noise."""

    def draw(n: int, generator: Generator) -> Batch:
        y = labels(n, generator)
        return templates(*shape)[y] + NOISE * torch.randn(n, *shape, generator=generator), y

    return draw


def walk(n: int, length: int, generator: Generator) -> Tensor:
    """Sequences of tokens, each the successor of the one before: a fixed permutation."""
    successor = CONTENT + torch.randperm(VOCABULARY - CONTENT, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(CONTENT, VOCABULARY, (n, 1), generator=generator)
    for _ in range(length - 1):
        tokens = torch.cat([tokens, successor[tokens[:, -1:] - CONTENT]], 1)
    return tokens


def sequences(n: int, generator: Generator) -> Batch:
    """Tokens [n, LENGTH] to be continued."""
    return (walk(n, LENGTH, generator),)


def translations(n: int, generator: Generator) -> Batch:
    """A source and its target, both [n, LENGTH]; the target begins as the source and goes on its own way."""
    target = walk(n, LENGTH, generator)
    source = torch.cat([target[:, :1], walk(n, LENGTH - 1, generator)], 1)
    return source, target


def texts(n: int, generator: Generator) -> Batch:
    """Tokens [n, LENGTH], padded from lengths of their own on, a mask of the same shape, and classes."""
    y = labels(n, generator)
    width = (VOCABULARY - CONTENT) // CLASSES
    tokens = CONTENT + y[:, None] * width + torch.randint(width, (n, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (n, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    return torch.where(mask, tokens, PAD), mask.long(), y


def captions(*shape: int) -> Task:
    """Pictures, texts (tokens and mask) and whether they belong together, 1 or -1."""

    def draw(n: int, generator: Generator) -> Batch:
        tokens, mask, y = texts(n, generator)
        same = torch.rand(n, generator=generator) < 0.5
        shown = torch.where(same, y, (y + 1) % CLASSES)
        noise = NOISE * torch.randn(n, *shape, generator=generator)
        return templates(*shape)[shown] + noise, tokens, mask, same.float() * 2 - 1

    return draw


def recordings(*shape: int) -> Task:
    """Features of a shape and what is said in them, tokens [n, LENGTH]."""

    def draw(n: int, generator: Generator) -> Batch:
        target = walk(n, LENGTH, generator)
        noise = NOISE * torch.randn(n, *shape, generator=generator)
        return templates(*shape)[target[:, 0] % CLASSES] + noise, target

    return draw


def token_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence; logits [n, s, classes], target [n, s]."""
    return F.cross_entropy(logits.mT, target, reduction="none").mean(1)


def class_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample."""
    return F.cross_entropy(logits, target, reduction="none")


def square_losses(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample."""
    return (output - target).square().flatten(1).mean(1)


def shifted_right(tokens: Tensor) -> Tensor:
    """Return what a decoder reads when it is to say ``tokens``."""
    return F.pad(tokens[:, :-1], (1, 0), value=START)
