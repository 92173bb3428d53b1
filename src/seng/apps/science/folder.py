"""The folder of a problem's runs: for each method its records and its network, and pictures of all together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import OptionError
from .run import Record


class Folder:
    """``METHOD.jsonl``: a line of settings, then a record a line. ``METHOD.pt``: the network's parameters.

    Args:
        path: The folder; made where it is absent.
        problem: Name of the problem that its runs solve.
        overwrite: Whether runs of the same method may be replaced.

    Raises:
        OptionError: It holds runs of another problem.
    """

    def __init__(self, path: Path, problem: str, overwrite: bool = False):
        self.path, self.problem, self.overwrite = path, problem, overwrite
        for file in sorted(path.glob("*.jsonl")):
            held = self._head(file).get("problem")
            if held != problem:
                raise OptionError(
                    "seng science", "--out holds another problem", expected=problem, got=held,
                    fix="Choose another --out",
                )  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)

    def require_room(self, method: str) -> None:
        """Raise OptionError if there is a run of a method that may not be replaced."""
        if (self.path / f"{method}.jsonl").exists() and not self.overwrite:
            raise OptionError(
                "seng science", f"--out holds a run of {method}", expected="a folder without one", got=str(self.path),
                fix="Pass --overwrite, or another --out",
            )  # fmt: skip

    def write(self, method: str, head: dict[str, Any], records: Iterable[Record]) -> Iterator[Record]:
        """Write settings and records as they come, and hand the records on."""
        with (self.path / f"{method}.jsonl").open("w", encoding="utf-8", buffering=1) as file:
            print(json.dumps({"problem": self.problem, "method": method, **head}), file=file)
            for record in records:
                print(json.dumps(asdict(record)), file=file)
                yield record

    def save(self, method: str, net: nn.Module) -> None:
        """Save a network's parameters."""
        torch.save(net.state_dict(), self.path / f"{method}.pt")

    def runs(self) -> dict[str, list[Record]]:
        """Return the records of every method that has any; lines that are damaged are passed over."""
        found = {}
        for file in sorted(self.path.glob("*.jsonl")):
            method, lines = self._head(file).get("method"), _lines(file)[1:]
            records = [Record(**values) for values in map(_parsed, lines) if _whole(values)]
            if records and isinstance(method, str):
                found[method] = records
        return found

    def _head(self, file: Path) -> dict[str, Any]:
        return _parsed("".join(_lines(file)[:1]))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(values: dict[str, Any]) -> bool:
    """Whether values are those of a record."""
    if values.keys() != {field.name for field in fields(Record)} or type(values["step"]) is not int:
        return False
    return all(type(value) in (int, float) or (value is None and name == "damping") for name, value in values.items())
