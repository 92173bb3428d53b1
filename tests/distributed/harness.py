"""Runs named scenarios on several ranks. One process imports everything once and forks the ranks of each job.

``run`` starts it; ``python harness.py JOBS FOLDER LIMIT`` is it. A job that does not finish within its limit is ended
and told as such: no test waits for ever.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = ("scenarios", "traffic", "states", "faults", "whole", "moves", "resumes")
LIMIT = 90  # seconds after which ranks are taken to wait for each other for ever
START = 120  # seconds that starting may take on a busy machine
HUNG = 124  # exit status of a rank that had to be ended


@dataclass(frozen=True)
class Job:
    """Scenarios, run one after the other by the same ranks.

    Args:
        world: Number of ranks.
        scenarios: Names of functions, "module.function" in this folder, called with rank and world.
        timeout: Seconds that a collective call waits.
    """

    world: int
    scenarios: tuple[str, ...]
    timeout: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """What the ranks of a job gave.

    Args:
        results: By rank: what each scenario returned, by name; empty where the rank did not end well.
        codes: Exit statuses.
        said: What they printed.
    """

    results: list[dict[str, Any]]
    codes: list[int]
    said: list[str]

    def good(self) -> list[dict[str, Any]]:
        """Return the results, where all ranks ended well."""
        assert not any(self.codes), "\n".join(self.said)
        return self.results


def run(folder: Path, jobs: list[Job], limit: float = LIMIT) -> list[Outcome]:
    """Run all jobs, one after the other."""
    import seng

    path = os.pathsep.join([str(Path(seng.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    orders = json.dumps([asdict(job) for job in jobs])
    done = subprocess.run(
        [sys.executable, __file__, orders, str(folder), str(limit)], env=environment, capture_output=True, text=True,
        timeout=limit * len(jobs) + START, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = []
    for number, (job, codes) in enumerate(zip(jobs, json.loads(done.stdout), strict=True)):
        files = [folder / f"{number}.{rank}" for rank in range(job.world)]
        ended = zip(files, codes, strict=True)
        results = [{} if code else json.loads(Path(f"{file}.json").read_text()) for file, code in ended]
        said = [Path(f"{file}.log").read_text() for file in files]
        outcomes.append(Outcome(results, codes, said))
    return outcomes


def main(orders: str, folder: str, limit: str) -> None:
    """Fork the ranks of each job, and print how they ended."""
    sys.path.insert(0, str(Path(__file__).parent))
    for name in MODULES:  # once, before the ranks are forked
        import_module(name)
    ended = []
    for number, order in enumerate(json.loads(orders)):
        job = Job(order["world"], tuple(order["scenarios"]), order["timeout"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [_fork(job, rank, Path(folder) / str(number), port) for rank in range(job.world)]
        ended.append(_wait(started, float(limit)))
    print(json.dumps(ended))


def _fork(job: Job, rank: int, stem: Path, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(f"{stem}.{rank}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _rank(job, rank, stem, port)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank(job: Job, rank: int, stem: Path, port: int) -> None:
    import warnings
    from contextlib import suppress
    from datetime import timedelta

    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    os.chdir(stem.parent)  # what earlier jobs have saved
    warnings.simplefilter("ignore")
    store = f"tcp://127.0.0.1:{port}"
    patience = timedelta(seconds=job.timeout)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=job.world, timeout=patience)
    found = {}
    for scenario in job.scenarios:
        module, name = scenario.split(".")
        found[name] = getattr(import_module(module), name)(rank, job.world)
    Path(f"{stem}.{rank}.json").write_text(json.dumps(found))
    with suppress(RuntimeError):  # some scenarios end with a rank less
        dist.barrier()


def _wait(children: list[int], limit: float) -> list[int]:
    codes: dict[int, int] = {}
    start = time.monotonic()
    while len(codes) < len(children):
        late = time.monotonic() - start > limit
        for child in children:
            if child in codes:
                continue
            if late:
                os.kill(child, signal.SIGKILL)
            pid, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if pid:
                codes[child] = HUNG if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[child] for child in children]


if __name__ == "__main__":
    main(*sys.argv[1:])
