"""Batches prepared ahead: equal for any number of workers, and no worker outlives its use."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seng.apps.train import data
from seng.apps.train.config import DataConfig
from seng.apps.train.data import Split, TensorSplit, prefetched
from seng.apps.train.errors import DataError

from .cifar_files import write_cifar
from .image_files import CLASSES, write_imagenet

SOON = 30.0  # seconds: a worker looks every five whether its main process is still there


def _cifar(folder: Path) -> Split:
    write_cifar(folder)
    return data.load_dataset(DataConfig("cifar10", str(folder), augment=True)).train


def _imagenet(folder: Path) -> Split:
    write_imagenet(folder)
    return data.load_dataset(DataConfig("imagenet", str(folder), augment=True, size=16)).train


def _beginning(folder: Path) -> Split:
    write_cifar(folder)
    return data.load_dataset(DataConfig("cifar10", str(folder), augment=True, train_samples=11)).train


def _tensors(folder: Path) -> Split:
    return TensorSplit(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12))


def _all_ended() -> bool:
    until = time.monotonic() + SOON
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    return not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("make", [_cifar, _imagenet, _beginning, _tensors])
def test_prefetched_batches_are_the_split_s_own_in_order(tmp_path: Path, make: Callable[[Path], Split], workers: int):
    split = make(tmp_path)
    batches = data.epoch_batches(len(split), 4, seed=1, epoch=2)
    found = list(prefetched(split, batches, draw=5, workers=workers))
    assert len(found) == len(batches)
    for (inputs, targets), indices in zip(found, batches, strict=True):
        expected_inputs, expected_targets = split.batch(indices, 5)
        assert torch.equal(inputs, expected_inputs)
        assert torch.equal(targets, expected_targets)
    assert _all_ended()


@pytest.mark.parametrize("make", [_cifar, _imagenet, _beginning, _tensors])
def test_splits_can_be_sent_to_workers_that_are_started_afresh(tmp_path: Path, make: Callable[[Path], Split]):
    split = make(tmp_path)
    sent = pickle.loads(pickle.dumps(split))  # where processes are not forked, and from Python 3.14 on everywhere
    assert torch.equal(sent.batch(torch.arange(3), 1)[0], split.batch(torch.arange(3), 1)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetched_leaves_torch_s_generator_alone(tmp_path: Path, workers: int):
    split = _tensors(tmp_path)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(prefetched(split, [torch.arange(4)] * 3, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetched_raises_the_error_that_names_the_picture(tmp_path: Path, workers: int):
    split = _imagenet(tmp_path)
    damaged = tmp_path / "train" / CLASSES[2] / f"{CLASSES[2]}_1.JPEG"  # number 9
    damaged.write_bytes(b"no picture")
    ahead = prefetched(split, torch.arange(12).split(3), workers=workers)
    for _ in range(3):
        next(ahead)
    with pytest.raises(DataError, match=rf"{damaged} cannot be read: expected a whole picture.*Fetch it again"):
        next(ahead)
    assert _all_ended()


def test_prefetched_has_no_more_workers_than_there_are_cores(tmp_path: Path, recwarn):
    with closing(prefetched(_tensors(tmp_path), torch.arange(12).split(1), workers=1000)) as ahead:
        next(ahead)
        assert len(multiprocessing.active_children()) == len(os.sched_getaffinity(0))
    assert not recwarn.list


def test_prefetched_ends_its_workers_when_closed(tmp_path: Path):
    with closing(prefetched(_cifar(tmp_path), torch.arange(20).split(1), workers=2)) as ahead:
        next(ahead)
        assert len(multiprocessing.active_children()) == 2
    assert _all_ended()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_prefetched_goes_on_when_the_workers_are_asked_to_stop(tmp_path: Path, number: int):
    split = _cifar(tmp_path)
    ahead = prefetched(split, torch.arange(20).split(1), workers=2)
    found: list[Tensor] = [next(ahead)[1]]
    workers = multiprocessing.active_children()
    next_targets = [next(ahead)[1] for _ in range(4)]  # both have worked, so both have begun to ignore signals
    for worker in workers:
        os.kill(worker.pid or 0, number)
    found += next_targets + [targets for _, targets in ahead]
    assert torch.equal(torch.cat(found), split.batch(torch.arange(20))[1])
    assert _all_ended()


SCRIPT = """
import multiprocessing, os, sys, time, torch
from seng.apps.train.data import TensorSplit, prefetch, prefetched

def follow_late(worker, follow=prefetch._follow_main):
    time.sleep(worker)
    follow(worker)

if sys.argv[1] == "killed before a worker looks":
    prefetch._follow_main = follow_late
split = TensorSplit(torch.randn(64, 3), torch.arange(64))
ahead = prefetched(split, torch.arange(64).split(1), workers=2)
next(ahead)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
if sys.argv[1] != "ended":
    os.kill(os.getpid(), 9)
"""


ENDS = [("ended", 0), ("killed", -signal.SIGKILL), ("killed before a worker looks", -signal.SIGKILL)]


@pytest.mark.parametrize(("end", "code"), ENDS)
def test_prefetched_leaves_no_workers_behind_a_program_that_stops_in_the_middle(end: str, code: int):
    ended = subprocess.run([sys.executable, "-c", SCRIPT, end], stdout=subprocess.PIPE, timeout=4 * SOON)
    assert ended.returncode == code
    workers = [int(word) for word in ended.stdout.split()]
    assert len(workers) == 2
    until = time.monotonic() + SOON
    while any(map(_is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(_is_alive, workers))


def _is_alive(pid: int) -> bool:
    """Say whether a process is there and still runs: one that nobody has asked about may be a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_prefetched_batches_on_a_gpu_are_those_on_the_cpu(tmp_path: Path, workers: int):
    split = _cifar(tmp_path)
    batches = torch.arange(20).split(4)
    there = prefetched(split, batches, draw=1, workers=workers, device=torch.device("cuda"))
    for (inputs, targets), (expected, classes) in zip(there, prefetched(split, batches, draw=1), strict=True):
        assert inputs.device.type == "cuda"
        torch.testing.assert_close(inputs.cpu(), expected)
        assert torch.equal(targets.cpu(), classes)
