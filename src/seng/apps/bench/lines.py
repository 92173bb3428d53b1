"""The file of trials: one JSON object a line, added when a trial is done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BenchError

IDENTITY = (
    "protocol", "workload", "budget", "amount", "optimizer", "stage", "number", "seed", "values", "settings",
)  # fmt: skip
PLACE = ("protocol", "workload", "budget", "optimizer", "stage", "seed")  # with the number of a tuning trial


class Lines:
    """The lines of a file, later ones in place of earlier ones of the same run with other settings.

    A last line that was cut short, as by a kill, is removed.

    Args:
        path: The file; it need not be there yet.

    Raises:
        BenchError: A line is no trial.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        self._held: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            self._hold(_parsed(line, number, path))

    def __iter__(self) -> Any:
        return iter(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def find(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the line of a trial that was run before with the same settings."""
        line = self._held.get(_place(identity))
        return line if line is not None and _key(line, IDENTITY) == _key(identity, IDENTITY) else None

    def add(self, line: dict[str, Any]) -> None:
        """Write a line at the end, in one piece, and bring it to the disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._hold(line)

    def _hold(self, line: dict[str, Any]) -> None:
        self._held[_place(line)] = line


def _place(line: Mapping[str, Any]) -> str:
    """Return what a later line shares with the one that it replaces."""
    return _key({**line, "stage": (line["stage"], line["number"] if line["stage"] == "tuning" else None)}, PLACE)


def _key(line: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return json.dumps([line[name] for name in names], sort_keys=True)


def _parsed(text: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        line = json.loads(text)
        missing = {*IDENTITY, "ended", "loss", "curve"} - line.keys()
    except (ValueError, AttributeError, RecursionError):
        line, missing = {}, {"JSON"}
    if missing:
        raise BenchError(
            "seng bench", f"line {number} of {path} is no trial", expected="a JSON object with all its names",
            got=f"one without {', '.join(sorted(missing))}", fix="Remove the line; its trial is run again",
        )  # fmt: skip
    return line
