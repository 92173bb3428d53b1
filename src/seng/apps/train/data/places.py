"""Where a data set is looked for, and what is said when it is not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError


@dataclass(frozen=True)
class Place:
    """Where a data set may lie.

    Attributes:
        title: the data set's name in messages.
        below: paths tried below the folder that is named, in order; "" is the folder itself.
        holds: whether a path is the data set.
        get: how to get it, in a few words.
        system: where the system's package puts it.
    """

    title: str
    below: tuple[str, ...]
    holds: Callable[[Path], bool]
    get: str
    system: Path | None = None

    def find(self, config: DataConfig) -> Path | None:
        """Return where the data set is, or None.

        A folder that was named (``data_dir``, else the environment's SENG_DATA) is the only one searched, with the
        paths below it; without a name it is the system's.
        """
        named = _named(config)
        candidates = [Path(named, path) for path in self.below] if named else [self.system] if self.system else []
        return next((path for path in candidates if self.holds(path)), None)

    def require(self, config: DataConfig) -> Path:
        """Return where the data set is.

        Raises:
            DataError: it is not here.
        """
        path = self.find(config)
        if path is None:
            got = _named(config) or (str(self.system) if self.system else None)
            raise self.error("load_dataset", f"{self.title} is not here", "a folder with its files", got)
        return path

    def status(self, config: DataConfig) -> str:
        """Say where the data set was found, or how to get it."""
        path = self.find(config)
        return f"found in {path}" if path else f"absent: {self.get}"

    def error(self, call: str, problem: str, expected: str, got: object) -> DataError:
        """Return the error of files that are absent or wrong, which says how to get right ones."""
        fix = f"Get it ({self.get}), or give its folder with --data-dir or SENG_DATA"
        return DataError(call, problem, expected=expected, got=got, fix=fix)


def _named(config: DataConfig) -> str | None:
    return config.data_dir or os.environ.get("SENG_DATA")
