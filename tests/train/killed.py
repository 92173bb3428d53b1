"""Runs that are killed: ``python killed.py FOLDER KILLS SEED`` trains to the end in processes killed at random moments.

Processes are forked from one that has imported everything, so that a start takes no seconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import torch._dynamo  # which the first optimizer of a process imports, in seconds

from seng.apps.recipes import build_recipe
from seng.apps.train import build_session, create_run, open_run, train
from seng.apps.train.config import RunConfig
from seng.apps.train.settings import override

CHANGES = {"epochs": "3", "model.widths": "4,8", "batch_size": "128", "log_every": "3", "stats_every": "4"}


def config() -> RunConfig:
    """Three epochs of eleven steps, saved every two."""
    return override(build_recipe("digits"), CHANGES | {"checkpoint_every": "2"})


def start(folder: Path) -> int:
    """Train in a process of its own; return its number."""
    child = os.fork()
    if child == 0:
        try:
            run = open_run(folder)[0] if (folder / "config.json").exists() else create_run(folder, config())
            train(build_session(config()), run, resume=True)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    return child


def finish(child: int) -> None:
    """Wait for a process that must end well."""
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a resumed run failed: {status}")


def main(folder: Path, kills: int, seed: int) -> None:
    """Train undisturbed, then in processes killed at moments drawn evenly from the time that took."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a checkpoint passed over as damaged would warn
    draw = random.Random(seed)
    began = time.perf_counter()
    finish(start(folder / "whole"))
    whole = time.perf_counter() - began
    killed = 0
    for _ in range(kills):
        child = start(folder / "killed")
        time.sleep(draw.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    finish(start(folder / "killed"))
    print(f"killed {killed} of {kills}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
