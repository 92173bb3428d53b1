"""Signals: the first is noted, the next acts as before, and handlers are put back."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack

import pytest

from seng.apps.train import signals
from seng.apps.train.signals import NUMBERS, Interrupted, Signals


@pytest.mark.parametrize("number", NUMBERS)
def test_first_signal_is_noted(number: signal.Signals):
    with Signals() as noted:
        assert noted.received == 0
        os.kill(os.getpid(), number)
        assert noted.received == number


def test_later_signal_acts_as_it_did_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "SAME", -1.0)
    with Signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert noted.received == signal.SIGTERM


def test_signals_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "SAME", 3600.0)
    with Signals() as noted:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert noted.received == signal.SIGINT


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    inside = ExitStack()
    inside.enter_context(Signals())
    assert [signal.getsignal(number) for number in NUMBERS] != before
    inside.close()
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_signals_are_left_alone_outside_of_the_main_thread():
    before, seen = [signal.getsignal(number) for number in NUMBERS], []

    def enter() -> None:
        with Signals():
            seen.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == before


def test_interruption_names_its_signal():
    assert str(Interrupted(signal.SIGTERM)) == "stopped by SIGTERM"
