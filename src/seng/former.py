"""Former names of modules, which are still found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    **{name: f"apps.{name}" for name in ("recipes", "report", "science", "theory", "train")},
    "planner": "planning.choice",
    "preflight": "planning.report",
    "scaling": "planning.forecast",
    "distributed.timing": "planning.network",
}


def _present(rest: str) -> str | None:
    """Return where a module of the package is now, None where it has always been there."""
    for old, now in MOVED.items():
        if f"{rest}.".startswith(f"{old}."):
            return now + rest[len(old) :]
    return None


class _Moved(Loader):
    """Gives the module itself under its former name, not a copy."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package, _, rest = spec.name.partition(".")
        module = import_module(f"{package}.{_present(rest)}")
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


class _FormerNames(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        now = _present(rest) if package == __package__ else None
        if now is None:
            return None
        if rest in MOVED:
            warnings.warn(f"{fullname} is now {package}.{now}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Moved())


def install() -> None:
    """Let former names be imported."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FormerNames())  # before the one that would load the same file again
