"""``seng train``, as a person calls it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from seng.apps import cli

QUICK = ("--epochs", "2", "--set", "model.widths=4,8", "--batch-size", "128")


def _config(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


def _epochs(out: Path) -> list[dict]:
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "epoch"]


def test_train_leaves_a_whole_run_and_prints_the_accuracy(call, tmp_path: Path):
    out = tmp_path / "run"
    code, printed = call("train", "--out", out, *QUICK)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "curves.png"}
    last = _epochs(out)[-1]
    assert f"test accuracy {last['test_accuracy']:.2%}, test loss {last['test_loss']:.4f}" in printed
    assert "digits, seng, seed 0: 2 epochs of 11 steps" in printed
    assert "Traceback" not in printed


def test_train_flags_reach_the_settings(call, tmp_path: Path):
    flags = ("--epochs", "1", "--lr", "0.05", "--batch-size", "500", "--seed", "3", "--device", "cpu")
    seng = ("--damping", "0.3", "--power", "1", "--refresh-every", "4", "--base", "adamw")
    code, _ = call("train", "digits", "--out", tmp_path, *flags, *seng, "--set", "trust=none")
    assert code == 0
    config = _config(tmp_path)
    assert (config["epochs"], config["batch_size"], config["seed"]) == (1, 500, 3)
    assert config["optimizer"]["lr"] == 0.05
    options = {"damping": 0.3, "power": 1.0, "refresh_every": 4, "base": "adamw", "trust": None}
    assert options.items() <= config["optimizer"]["seng"].items()


def test_train_chooses_the_optimizer(call, tmp_path: Path):
    assert call("train", "--out", tmp_path, "--optimizer", "sgd", *QUICK)[0] == 0
    assert _config(tmp_path)["optimizer"]["name"] == "sgd"


def test_stop_and_resume_finish_the_run(call, tmp_path: Path):
    assert call("train", "--out", tmp_path / "parts", *QUICK, "--stop-after", "1")[0] == 0
    code, printed = call("train", "--out", tmp_path / "parts", *QUICK, "--resume")
    assert code == 0
    _, whole = call("train", "--out", tmp_path / "whole", *QUICK)
    results = [line for text in (printed, whole) for line in text.splitlines() if "%, test loss" in line]
    assert len(results) == 2
    assert results[0] == results[1]


def test_train_refuses_to_overwrite_unless_told(call, tmp_path: Path):
    assert call("train", "--out", tmp_path, *QUICK, "--stop-after", "1")[0] == 0
    code, printed = call("train", "--out", tmp_path, *QUICK)
    assert code == 2
    assert "error: seng train: the folder already holds a run" in printed
    assert call("train", "--out", tmp_path, *QUICK, "--seed", "1", "--overwrite")[0] == 0
    assert _config(tmp_path)["seed"] == 1


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signal_saves_and_says_how_to_go_on(call, tmp_path: Path, monkeypatch, name: str, code: int):
    _send(monkeypatch, signal.Signals[name], after=4)
    stopped, printed = call("train", "--out", tmp_path, *QUICK)
    monkeypatch.undo()
    assert stopped == code
    assert f"stopped by {name}; everything is kept: seng train --out {tmp_path} --resume goes on" in printed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004.pt"]
    assert call("train", "--out", tmp_path, "--resume")[0] == 0
    assert [record["epoch"] for record in _epochs(tmp_path)] == [1, 2]


def test_second_interrupt_stops_at_once(call, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("seng.apps.train.signals.SAME", -1.0)
    _send(monkeypatch, signal.SIGINT, after=4, times=2)
    stopped, printed = call("train", "--out", tmp_path, *QUICK, "--checkpoint-every", "2")
    assert stopped == 130
    assert "stopped by SIGINT; the last checkpoint is kept" in printed
    assert (tmp_path / "checkpoints" / "step-00000002.pt").exists()
    assert not (tmp_path / "checkpoints" / "step-00000004.pt").exists()


def _send(monkeypatch, number: signal.Signals, after: int, times: int = 1) -> None:
    """Send this process a signal inside of a step."""
    steps = []

    def advanced(self: object, samples: int) -> None:
        steps.append(samples)
        if len(steps) == after + 1:  # the first call tells where the run starts
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr("seng.apps.train.progress.ProgressBar.advanced", advanced)


def test_target_ends_the_run_early(call, tmp_path: Path):
    code, printed = call("train", "--out", tmp_path, *QUICK, "--until", "test_loss=2.5")
    assert code == 0
    assert "test_loss=2.5 was reached in epoch 1: the run is over" in printed
    assert [record["epoch"] for record in _epochs(tmp_path)] == [1]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    code, printed = call("train", "--out", tmp_path, "--resume")
    assert code == 0
    assert "test_loss=2.5 was reached in epoch 1" in printed
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_json_is_one_line_on_standard_output(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--out", str(tmp_path), *QUICK, "--json"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    last = _epochs(tmp_path)[-1]
    assert {name: result[name] for name in ("epoch", "test_loss", "test_accuracy", "seconds")}.items() <= last.items()
    assert (result["recipe"], result["optimizer"], result["seed"]) == ("digits", "seng", 0)
    assert (result["ended"], result["out"]) == ("epochs", str(tmp_path))
    assert "test accuracy" in printed.err


def test_tensorboard_is_written_when_asked_for(call, tmp_path: Path):
    pytest.importorskip("tensorboard")
    assert call("train", "--out", tmp_path, *QUICK, "--stop-after", "1", "--tensorboard")[0] == 0
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "unknown recipe"),
        (("--set", "damping"), "bad --set: expected name=value, got 'damping'"),
        (("--set", "dampin=1"), "Did you mean 'damping'"),
        (("--epochs", "none"), "bad value for epochs"),
        (("--optimizer", "adam"), "Did you mean 'adamw'"),
        (("--optimizer", "sgd", "--damping", "1"), "unknown setting for digits with sgd"),
        (("--damping", "-1"), "damping"),
        (("--device", "abacus"), "the device cannot be used"),
        (("--precision", "fp8"), "bad value for precision"),
        (("--clip", "0"), "clip is out of range"),
        (("--until", "test_accuracy=97"), "until is out of range"),
        (("--accumulate", "100"), "the batch is too small to be dealt out"),
        (("fashion-resnet", "--data-dir", "nowhere"), "apt-get install dataset-fashion-mnist"),
        (("--resume",), "there is no run to resume"),
        (("--resume", "--overwrite"), "exclude each other"),
        (("--stop-after", "0"), "--stop-after"),
        (("--nonsense",), "No such option"),
    ],
)
def test_bad_usage_exits_with_2_and_one_clear_message(call, tmp_path: Path, arguments, words: str):
    code, printed = call("train", "--out", tmp_path / "run", *arguments)
    assert code == 2
    assert words in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_out_is_required(call):
    code, printed = call("train")
    assert code == 2
    assert "Missing option '--out'" in printed


@pytest.mark.parametrize("arguments", [("--lr", "3"), ("fashion-resnet",), ("--optimizer", "sgd")])
def test_resume_refuses_other_settings(call, tmp_path: Path, arguments):
    assert call("train", "--out", tmp_path, *QUICK, "--stop-after", "1")[0] == 0
    (saved,) = (tmp_path / "checkpoints").iterdir()
    before = saved.read_bytes()
    code, printed = call("train", "--out", tmp_path, "--resume", *arguments)
    assert code == 2
    assert "is not what the run was started with" in printed
    assert saved.read_bytes() == before
