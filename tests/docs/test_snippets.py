"""Every python block of the README and the pages runs, in the order of its page."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from .pages import PAGES, README, python_blocks

MOST_LINES = 10  # of the README's quick start
WITH_BLOCKS = [path for path in PAGES if python_blocks(path)]


def given() -> dict[str, Any]:
    """What the README leaves to its reader."""
    loader = [(torch.randn(16, 8), torch.randint(3, (16,))) for _ in range(3)]
    make = partial(nn.Sequential, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return {"make_your_model": make, "loader": loader, "loss_function": nn.CrossEntropyLoss()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, one rank as torchrun would start it, and a compiler that needs no toolchain."""
    from seng.layers import LAYERS
    from seng.testing import LAYER_CASES

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in {**launched, "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (LAYERS, LAYER_CASES)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)  # type: ignore[arg-type]
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("path", WITH_BLOCKS, ids=lambda path: path.name)
def test_blocks_run(path: Path) -> None:
    torch.manual_seed(0)
    names = given() if path == README else {}
    for line, block in python_blocks(path):
        code = "\n" * line + block  # so that a traceback names the page's own line
        exec(compile(code, str(path), "exec"), names)


def test_quick_start_is_short_and_leaves_every_parameter_moved() -> None:
    block = python_blocks(README)[0][1]
    assert len([line for line in block.splitlines() if line.strip()]) <= MOST_LINES
    names = given()
    model = names["make_your_model"]()
    before = [p.detach().clone() for p in model.parameters()]
    exec(block, names)
    assert names["model"][0] is model[0]  # the same modules
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert all(p.isfinite().all() for p in model.parameters())


def test_pages_with_snippets_are_found() -> None:
    assert {"README.md", "index.md", "quickstart.md", "architecture.md", "errors.md"} <= {p.name for p in WITH_BLOCKS}
