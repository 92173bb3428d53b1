"""Several processes: the run of one process, its files written once, each process's own state restored."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

import seng
from seng.apps.train.errors import ConfigError
from seng.apps.train.folder import RunFolder
from seng.apps.train.metrics import StartRecord, read_records
from seng.apps.train.ranks import ALONE, Ranks, choose_device, joined
from seng.errors import RankError

from . import worker
from .worker import STOPPED_AT, config_of, run

WORLD = 2
ROUNDING = 1e-4  # float32 sums in another order, over two epochs of training
EDGE = 2 / 450  # a picture or two between two classes
HANG = 240  # seconds after which the processes are taken to wait for each other for ever
TIMES = ("seconds", "samples_per_second", "parts")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def _environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    path = os.pathsep.join([str(Path(seng.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **place, **meeting}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes ran all scenarios."""
    folder, port = tmp_path_factory.mktemp("ranks"), _free_port()
    started = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(folder)],
            env=_environment(rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=HANG)[0] for process in started]
    except subprocess.TimeoutExpired:
        pytest.fail(f"the processes did not finish in {HANG} s: a collective call is missing in one of them")
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(said)
    return folder


def _records(folder: Path) -> list[dict[str, Any]]:
    """Records without times, and without the starts of processes, which are times."""
    records = [asdict(record) for record in read_records(RunFolder(folder).metrics) if record.kind != "start"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


@pytest.mark.parametrize("scenario", ["sgd", "dealt"])
def test_two_processes_train_as_one_on_the_same_batches(folder: Path, tmp_path: Path, scenario: str):
    run(config_of(scenario), tmp_path / scenario, ALONE)
    several, alone = _records(folder / scenario), _records(tmp_path / scenario)
    assert [record["kind"] for record in several] == [record["kind"] for record in alone]
    assert len([record for record in several if "loss" in record]) == 7
    for one, other in zip(several, alone, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"kind", "reason"}:
            tolerance = EDGE if "accuracy" in name else ROUNDING
            assert one[name] == pytest.approx(other[name], rel=ROUNDING, abs=tolerance), name


def test_processes_agree_on_the_result(folder: Path):
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD))
    assert first == second
    last = [record for record in _records(folder / "seng") if record["kind"] == "epoch"][-1]
    assert (last["test_loss"], last["test_accuracy"]) == (first["seng"]["loss"], first["seng"]["accuracy"])


def test_each_process_saves_its_own_curvature(folder: Path):
    saved = sorted((folder / "seng" / "checkpoints").iterdir())
    names = [f"step-{step:08d}{rank}.pt" for step in (11, 22) for rank in ("", ".rank1")]
    assert sorted(path.name for path in saved) == sorted(names)
    first, second = (torch.load(folder / "seng" / "checkpoints" / name, weights_only=True) for name in names[2:])
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    traces = [state["optimizer"]["preconditioner"]["curvature"]["0"]["mean"] for state in (first, second)]
    assert traces[0] != traces[1]


@pytest.mark.parametrize("scenario", ["seng", "sharded"])
def test_curvature_of_all_layers_is_recorded_whoever_holds_it(folder: Path, scenario: str):
    records = [record for record in _records(folder / scenario) if record["kind"] == "curvature"]
    assert [record["step"] for record in records] == [4, 8, 11, 12, 16, 20, 22]
    assert all(set(record["layers"]) == {"0", "2", "6"} for record in records)
    assert set(records[-1]["spectra"]) == {"0", "2", "6"}


@pytest.mark.parametrize("scenario", ["resumed", "interrupted"])
def test_resumed_processes_equal_uninterrupted_ones_bit_for_bit(folder: Path, scenario: str):
    assert _records(folder / scenario) == _records(folder / "seng")


def test_signal_to_one_process_stops_all_at_the_next_logged_step(folder: Path):
    records = read_records(folder / "interrupted" / "metrics.jsonl")
    starts = [record for record in records if isinstance(record, StartRecord)]
    assert [record.step for record in starts] == [1, 7]
    assert STOPPED_AT < 6 == config_of("seng").log_every * 2
    assert starts[0].environment["processes"] == WORLD


def test_share_deals_every_sample_once():
    indices = torch.randperm(13)
    shares = [Ranks(rank, 4).share(indices) for rank in range(4)]
    assert torch.equal(torch.cat(shares), indices)
    assert {len(share) for share in shares} == {3, 4}


def _lost(*_: object, **__: object) -> None:
    raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer\nmore")


GONE = r"seng train: the ranks cannot reach each other: .*Connection closed by peer'\."


@pytest.mark.parametrize("call", ["sum", "largest", "gather", "copy_buffers"])
def test_lost_process_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, call: str):
    for name in ("all_reduce", "all_gather_object", "broadcast"):
        monkeypatch.setattr(dist, name, _lost)
    arguments = {"sum": torch.ones(1), "largest": 1, "gather": "x", "copy_buffers": torch.nn.BatchNorm1d(2)}
    with pytest.raises(RankError, match=GONE):
        getattr(Ranks(rank=0, world=2), call)(arguments[call])


def test_backward_pass_tells_a_lost_process_from_other_errors():
    with pytest.raises(RankError, match=GONE), Ranks(rank=0, world=2).averaging():
        _lost()
    with pytest.raises(RuntimeError, match="^does not require grad$"), Ranks(rank=0, world=2).averaging():
        raise RuntimeError("does not require grad")


def test_one_process_stays_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu") as ranks:
        assert ranks == ALONE
        assert not dist.is_initialized()
    values, model = torch.arange(3.0), torch.nn.Linear(2, 2)
    assert ranks.sum(values) is values
    assert (ranks.largest(3), ranks.agree(True), ranks.agree(False)) == (3, True, False)
    assert ranks.replicate(model, torch.device("cpu")) is model


def test_device_of_no_machine_is_refused():
    with pytest.raises(ConfigError, match="the device cannot be used: expected auto, cpu or cuda, got 'cuda:99'"):
        choose_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(("name", "expected"), [("cuda", "auto or cpu"), ("cuda:0", "auto, cpu or cuda")])
def test_absent_device_is_said_to_be_absent(name: str, expected: str):
    with pytest.raises(
        ConfigError, match=f"cannot be used: expected {expected}, got '{name}'. There is no CUDA device h"
    ):
        choose_device(name)


def test_a_run_of_several_processes_goes_on_with_one(folder: Path, tmp_path: Path):
    for scenario in ("seng", "sharded"):  # of an explicit strategy each
        copy = tmp_path / scenario
        shutil.copytree(folder / scenario, copy)
        for path in (copy / "checkpoints").glob("step-00000022*"):
            path.unlink()
        run(config_of(scenario), copy, ALONE, resume=True)
        (one, two) = (records[-1] for records in (_records(copy), _records(folder / scenario)))
        assert (one["kind"], one["step"]) == (two["kind"], two["step"]) == ("end", 22)
