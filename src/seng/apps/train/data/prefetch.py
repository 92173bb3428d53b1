"""Batches prepared ahead of the loop that uses them."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # its end of the workers has to be registered first, to come after ours
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....errors import SengError
from .base import Prefix, Split
from .pictures import PictureSplit

CPU = torch.device("cpu")


def prefetched(
    split: Split, batches: Sequence[Tensor], *, draw: int = 0, workers: int = 0, device: torch.device = CPU
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the inputs and targets of each batch of sample numbers, in the order given, on ``device``.

    The batches are the same, bit for bit, for any number of workers. Closing the iterator (leaving a ``for`` loop by
    ``break`` or an exception, in time; ``contextlib.closing`` at once) ends the workers. They are processes, so that
    decoding pictures does not take Python's lock from the training loop, and leave SIGINT and SIGTERM to it.

    Args:
        split: the samples.
        batches: sample numbers, a batch each, as ``epoch_batches`` gives them; a resumed epoch passes the rest.
        draw: which random variation of the samples, where they are augmented: one number for an epoch of a seed.
        workers: how many prepare batches ahead of the loop, no more than there are cores; 0: each batch is prepared
            when it is asked for.
        device: where the batches go; to a GPU from pinned memory, without waiting. Pictures go as bytes.

    Raises:
        DataError: a sample cannot be read; it is named.

    Cost: two batches a worker are held ready.
    """
    whole = split.whole if isinstance(split, Prefix) else split  # the numbers are within the prefix already
    generator = _prefetched(whole, batches, draw, workers, device)
    _open.add(generator)
    return generator


_open: WeakSet[Generator[tuple[Tensor, Tensor], None, None]] = WeakSet()


@atexit.register
def _close_all() -> None:
    """End the workers of a program that ends in the middle: they do not heed the signal it would send them."""
    for generator in list(_open):
        generator.close()


def _prefetched(
    split: Split, batches: Sequence[Tensor], draw: int, workers: int, device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    loader = DataLoader(
        _Prepared(split, batches, draw),
        batch_size=None,
        num_workers=min(workers, _cores()),
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_follow_main,
        generator=torch.Generator(),  # else it takes numbers from the global one, and dropout would differ
    )
    for prepared in loader:
        if isinstance(prepared, SengError):
            raise prepared
        inputs, targets = (part.to(device, non_blocking=True) for part in prepared)
        yield split.scaled(inputs) if isinstance(split, PictureSplit) else inputs, targets


@dataclass(frozen=True)
class _Prepared(Dataset):
    """The batches by number; an error is given back, since DataLoader cannot raise one of ours in another process."""

    split: Split
    batches: Sequence[Tensor]
    draw: int

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | SengError:
        take = self.split.pixels if isinstance(self.split, PictureSplit) else self.split.batch
        try:
            return take(self.batches[number], self.draw)
        except SengError as error:
            return error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_it_is(prepared: object) -> object:
    return prepared


def _follow_main(worker: int) -> None:
    """Let the main process alone decide what an interrupt means, and end with it.

    DataLoader's own watch misses a main process that is gone before the worker has begun to look.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)
