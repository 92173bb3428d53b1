"""One process of the tests of several: ``python worker.py FOLDER``, with torchrun's variables in the environment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from seng.apps.recipes import build_recipe
from seng.apps.train import Evaluation, RunFolder, build_session, create_run, train
from seng.apps.train.config import RunConfig
from seng.apps.train.ranks import Ranks, joined
from seng.apps.train.settings import override
from seng.apps.train.signals import Interrupted

QUICK = {"epochs": "2", "model.widths": "4,8", "batch_size": "128", "log_every": "3", "stats_every": "4"}
STOPPED_AT = 5  # the step at which the second process alone is asked to stop
SCENARIOS = {
    "sgd": ("sgd", {}),
    "dealt": ("sgd", {"accumulate": "2", "clip": "0.1"}),
    "seng": ("seng", {"distributed": "local"}),
    "sharded": ("seng", {"distributed": "sharded"}),
}


def config_of(scenario: str) -> RunConfig:
    optimizer, changes = SCENARIOS[scenario]
    return override(build_recipe("digits", optimizer), QUICK | changes)


def run(config: RunConfig, folder: Path, ranks: Ranks, *, resume: bool = False, **options: Any) -> Evaluation:
    """Train in a session of its own."""
    session = build_session(config, ranks)
    if ranks.first and not resume:
        create_run(folder, config)
    ranks.wait()
    return train(session, RunFolder(folder), resume=resume, **options)


def interrupted(folder: Path, ranks: Ranks) -> Evaluation:
    """Ask the second process alone to stop, then go on in both."""
    session, steps = build_session(config_of("seng"), ranks), []

    def ask(model: object, inputs: object) -> None:
        steps.append(inputs)
        if len(steps) == STOPPED_AT and not ranks.first:
            os.kill(os.getpid(), signal.SIGTERM)

    session.model.register_forward_pre_hook(ask)
    if ranks.first:
        create_run(folder, session.config)
    ranks.wait()
    with contextlib.suppress(Interrupted):
        train(session, RunFolder(folder))
    return run(config_of("seng"), folder, ranks, resume=True)


def main(folder: Path) -> None:
    """Run every scenario as one of several processes, and write what this one got."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with joined("cpu") as ranks:
        got = {name: run(config_of(name), folder / name, ranks) for name in SCENARIOS}
        run(config_of("seng"), folder / "resumed", ranks, stop_after=1)
        torch.manual_seed(1234 + ranks.rank)
        got["resumed"] = run(config_of("seng"), folder / "resumed", ranks, resume=True)
        got["interrupted"] = interrupted(folder / "interrupted", ranks)
    text = json.dumps({name: dataclasses.asdict(result) for name, result in got.items()})
    (folder / f"{ranks.rank}.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
