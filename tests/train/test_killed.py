"""A run that is killed, at whatever moment, resumes and ends with the numbers of one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import seng
from seng.apps.train.checkpoint import checkpoints
from seng.apps.train.folder import RunFolder
from seng.apps.train.metrics import read_records

from . import killed

TIMES = ("seconds", "samples_per_second", "parts")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(seng.__file__).parents[1])}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs a system that has it")


def _records(folder: Path) -> list[dict[str, Any]]:
    """Records without times, and without the starts of processes, which are times."""
    records = [asdict(record) for record in read_records(RunFolder(folder).metrics) if record.kind != "start"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def _assert_same(one: Path, other: Path) -> None:
    assert _records(one) == _records(other)
    models = (torch.load(checkpoints(path / "checkpoints")[0], weights_only=True)["model"] for path in (one, other))
    first, second = models
    assert all(torch.equal(first[name], second[name]) for name in first)


def _kill(folder: Path, kills: int, seed: int) -> str:
    command = [sys.executable, killed.__file__, str(folder), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_run_resumes_and_ends_with_the_same_numbers(tmp_path: Path, kills: int):
    said = _kill(tmp_path, kills, seed=kills)
    assert "killed 0" not in said
    _assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_program_killed_twenty_times_resumes_and_ends_with_the_same_numbers(tmp_path: Path):
    settings = [f"--set={name}={value}" for name, value in killed.CHANGES.items()]
    fresh = ["digits", *settings, "--checkpoint-every", "2"]

    def start(folder: Path) -> subprocess.Popen[bytes]:
        arguments = ["--resume"] if (folder / "config.json").exists() else fresh
        command = [sys.executable, "-m", "seng", "train", "--out", str(folder), *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)

    began = time.perf_counter()
    assert start(tmp_path / "whole").wait() == 0
    whole, draw, codes = time.perf_counter() - began, random.Random(0), []
    for _ in range(20):
        process = start(tmp_path / "killed")
        time.sleep(draw.uniform(0, whole))
        process.kill()
        codes.append(process.wait())
    assert -signal.SIGKILL in codes
    assert start(tmp_path / "killed").wait() == 0
    _assert_same(tmp_path / "killed", tmp_path / "whole")
