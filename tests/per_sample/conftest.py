"""Chunk sizes of temporaries."""

from __future__ import annotations

from importlib import import_module

import pytest

CHUNKED = ("base", "product", "lookup", "sketched", "truncated")


@pytest.fixture(params=[1, 20, 2**24], ids=["tiny", "small", "whole"])
def scratch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let temporaries hold this many elements."""
    for name in CHUNKED:  # by name: the package re-exports functions under the names of its modules
        monkeypatch.setattr(import_module(f"seng.per_sample.{name}"), "SCRATCH", request.param)
    monkeypatch.setattr("seng.linalg.gram.SCRATCH", request.param)
    return request.param
