"""A small run, seconds long, for the tests of the training application."""

from __future__ import annotations

import pytest

from seng.apps.recipes import build_recipe
from seng.apps.train.config import RunConfig
from seng.apps.train.settings import override

SMALL = {"epochs": "4", "model.widths": "4,8", "batch_size": "128", "log_every": "3"}


@pytest.fixture
def small_run() -> RunConfig:
    """Four epochs of eleven steps on the digits."""
    return override(build_recipe("digits"), SMALL)
