"""Former names of modules: ``seng.train`` and the other applications are in ``seng.apps`` now, and still found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = ("recipes", "report", "science", "theory", "train")


class _Moved(Loader):
    """Gives the module itself under its former name, not a copy."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package, _, rest = spec.name.partition(".")
        module = import_module(f"{package}.apps.{rest}")
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


class _FormerNames(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        first, _, inner = rest.partition(".")
        if package != __package__ or first not in MOVED:
            return None
        if not inner:
            warnings.warn(f"{fullname} is now {package}.apps.{first}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Moved())


def install() -> None:
    """Let former names be imported."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FormerNames())  # before the one that would load the same file again
