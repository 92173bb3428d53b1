"""``seng train``, as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUICK = ("--epochs", "2", "--set", "model.widths=4,8", "--batch-size", "128")


def _config(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


def test_train_leaves_a_whole_run_and_prints_the_accuracy(call, tmp_path: Path):
    out = tmp_path / "run"
    code, printed = call("train", "--out", out, *QUICK)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoint.pt", "curves.png"}
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
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


def test_interrupted_run_says_how_to_go_on_and_does(call, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:

        def interrupt(self: object, samples: int) -> None:
            raise KeyboardInterrupt

        patch.setattr("seng.train.progress.ProgressBar.advanced", interrupt)
        code, printed = call("train", "--out", tmp_path, *QUICK)
    assert code == 130
    assert f"interrupted; whole epochs are kept: seng train --out {tmp_path} --resume goes on" in printed
    assert call("train", "--out", tmp_path, "--resume")[0] == 0


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
    before = (tmp_path / "checkpoint.pt").read_bytes()
    code, printed = call("train", "--out", tmp_path, "--resume", *arguments)
    assert code == 2
    assert "is not what the run was started with" in printed
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
