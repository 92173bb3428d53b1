"""``torchrun ... -m seng train``: processes as a user starts them, killed, taken up again by more or fewer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

import seng
from seng.apps.train.checkpoint import checkpoint_path, checkpoints
from seng.apps.train.folder import RunFolder
from seng.apps.train.metrics import StartRecord, read_records

HANG = 240  # seconds after which processes are taken to wait for each other for ever
TIMES = ("seconds", "samples_per_second", "parts")
ROUNDING = 1e-4  # float32 sums in another order, over two epochs of training
PATH = str(Path(seng.__file__).parents[1])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH, "GLOO_SOCKET_IFNAME": "lo"}
QUICK = ("digits", "--epochs", "2", "--batch-size", "128", "--checkpoint-every", "4")
SETTINGS = ("--set=model.widths=4,8", "--set=log_every=3", "--set=stats_every=0")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def start(processes: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*torchrun, "-m", "seng", "train", "--out", str(folder), *arguments]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(started: subprocess.Popen[str]) -> str:
    """Wait for an end that must be good; end all processes where none comes."""
    try:
        said, _ = started.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"the processes did not finish in {HANG} s: they wait for each other")
    assert started.returncode == 0, said
    return said


def records(folder: Path) -> list[dict[str, Any]]:
    """Records without times, and without the starts of processes, which are times."""
    found = [asdict(record) for record in read_records(RunFolder(folder).metrics) if record.kind != "start"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in found]


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoints(folder / "checkpoints")[0], weights_only=True)["model"]


def workers(parent: int) -> Iterator[int]:
    """Yield the processes that a process has started."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            yield int(entry.parent.name)


def test_torchrun_trains_real_digits_on_two_processes(tmp_path: Path):
    said = finish(start(2, tmp_path / "run", *QUICK, *SETTINGS))
    assert "test accuracy" in said
    found = [record for record in records(tmp_path / "run") if record["kind"] == "epoch"]
    assert [record["epoch"] for record in found] == [1, 2]
    assert found[-1]["train_loss"] < 2.0  # chance is ln 10 = 2.3
    everything = read_records(tmp_path / "run" / "metrics.jsonl")
    starts = [record for record in everything if isinstance(record, StartRecord)]
    assert [record.environment["processes"] for record in starts] == [2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("strategy", ["local", "sharded"])
def test_rank_killed_while_training_ends_all_and_a_relaunch_continues_bit_for_bit(tmp_path: Path, strategy: str):
    settings = (*SETTINGS, f"--set=distributed={strategy}", "--set=refresh_every=3")
    finish(start(2, tmp_path / "whole", *QUICK, *settings))
    started = start(2, tmp_path / "killed", *QUICK, *settings)
    reached, found = checkpoint_path(tmp_path / "killed" / "checkpoints", 4), time.monotonic()
    while not reached.exists():
        assert time.monotonic() - found < HANG
        time.sleep(0.01)
    victim = max(workers(started.pid))
    os.kill(victim, signal.SIGKILL)
    said, _ = started.communicate(timeout=HANG)
    assert started.returncode != 0, said
    assert "SIGKILL" in said
    finish(start(2, tmp_path / "killed", "--resume"))
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    one, other = model_of(tmp_path / "killed"), model_of(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.slow
def test_three_processes_take_up_the_run_of_two_and_end_where_one_does(tmp_path: Path):
    settings = (*QUICK, *SETTINGS, "--set=refresh_every=7")
    finish(start(1, tmp_path / "whole", *settings))
    finish(start(2, tmp_path / "moved", *settings, "--set=distributed=sharded", "--stop-after", "1"))
    finish(start(3, tmp_path / "moved", "--resume"))
    for one, other in zip(records(tmp_path / "moved"), records(tmp_path / "whole"), strict=True):
        for name in {"loss", "train_loss", "test_loss"} & other.keys():
            assert one[name] == pytest.approx(other[name], rel=ROUNDING), name


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_run_is_taken_up_by_one_process_or_from_it(tmp_path: Path, first: int, then: int):
    finish(start(first, tmp_path, *QUICK, *SETTINGS, "--stop-after", "1", "--overwrite"))
    finish(start(then, tmp_path, "--resume"))
    found = [record for record in records(tmp_path) if record["kind"] == "epoch"]
    assert [record["step"] for record in found] == [11, 22]
    assert found[1]["train_loss"] < found[0]["train_loss"]
