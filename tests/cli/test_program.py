"""The program as a whole: help, exit codes, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_help_names_the_commands_and_their_options(call):
    code, printed = call("--help")
    assert code == 0
    assert "train" in printed
    assert "recipes" in printed
    code, printed = call("train", "--help")
    assert code == 0
    for word in ("--resume", "--overwrite", "--set", "Example:", "Exit codes:"):
        assert word in printed


def test_module_is_the_program(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "seng.cli",
        "train",
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "1",
        "--set",
        "model.widths=4,8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_module_shows_errors_without_a_traceback():
    command = [sys.executable, "-m", "seng.cli", "train", "nothing", "--out", "unused"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: seng train: unknown recipe")
    assert "Traceback" not in done.stderr
