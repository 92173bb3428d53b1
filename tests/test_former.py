"""Modules are found by the names they had before they moved."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from seng.former import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_former_name_is_the_module_itself(name: str) -> None:
    sys.modules.pop(f"seng.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"seng.{name} is now seng.{MOVED[name]}"):
        found = import_module(f"seng.{name}")
    assert found is import_module(f"seng.{MOVED[name]}")
    assert found.__spec__ is not None
    assert found.__spec__.name == f"seng.{MOVED[name]}"


def test_modules_within_are_not_loaded_twice() -> None:
    program = (
        "import seng.train.data.decode, seng.apps.train.data.decode as own, seng.train.data as data, sys;"
        "assert seng.train.data.decode is own and data is sys.modules['seng.apps.train.data'];"
        "assert own.__spec__.name == 'seng.apps.train.data.decode' and own.__name__ == own.__spec__.name"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        import_module("seng.train.nothing")
