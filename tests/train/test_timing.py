"""Clocks: sums and means of times that a false clock gives."""

from __future__ import annotations

import time

import pytest
import torch

from seng.apps.train import timing
from seng.apps.train.timing import StepClock, Stopwatch, process_age

CPU = torch.device("cpu")


class _Clock:
    """Time that goes on when told."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_stopwatch_goes_on_from_before_and_leaves_pauses_out(clock: _Clock):
    watch = Stopwatch(before=10.0)
    clock.now += 2
    with watch.paused():
        clock.now += 50
    clock.now += 1
    assert watch.seconds == 13.0


def test_stopwatch_goes_on_after_a_pause_that_failed(clock: _Clock):
    watch = Stopwatch()

    def fail() -> None:
        clock.now += 50
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), watch.paused():
        fail()
    clock.now += 1
    assert watch.seconds == 1.0


def test_step_clock_gives_means_over_steps_and_starts_anew(clock: _Clock):
    parts = StepClock(CPU)
    for seconds in (1.0, 3.0):
        with parts.part("optimizer"):
            clock.now += seconds
            if seconds == 3.0:
                with parts.part("refresh"):
                    clock.now += 2.0
    assert parts.means(steps=2) == {"optimizer": 3.0, "refresh": 1.0}
    assert parts.means(steps=1) == {}


def test_waiting_for_batches_is_data_and_their_use_is_not(clock: _Clock):
    def batches():
        for number in range(3):
            clock.now += 0.5
            yield number

    parts, seen = StepClock(CPU), []
    for batch in parts.waiting(batches()):
        clock.now += 10
        seen.append(batch)
    assert seen == [0, 1, 2]
    assert parts.means(steps=3) == {"data": 0.5}


@pytest.mark.gpu
def test_step_clock_times_the_device_without_waiting_for_it():
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    (x @ x).sum().item()
    parts, began = StepClock(device), time.perf_counter()
    with parts.part("forward"):
        for _ in range(20):
            x.copy_(x @ x / 64)
    queued = time.perf_counter() - began
    torch.cuda.synchronize()
    total = time.perf_counter() - began
    assert queued < total / 2
    assert total / 2 < parts.means(steps=1)["forward"] < total * 1.1  # the host's clock and the device's


def test_process_age_grows_and_is_older_than_any_import():
    first = process_age()
    time.sleep(0.05)
    assert time.perf_counter() - timing._IMPORTED - 0.02 <= first <= process_age()  # the system counts hundredths


def test_process_age_outside_of_linux_counts_from_the_import(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "Path", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert 0 < process_age() <= time.perf_counter() - timing._IMPORTED
