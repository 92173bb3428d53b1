"""Settings shared by all tests: slow and GPU tests are asked for, and every test has one thread."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

if threading.current_thread() is threading.main_thread():  # a shell starts background jobs with interrupts ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # one worker a core; and sums in one order, so that equal runs are bit-equal


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="gpu: no CUDA device here")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)
