"""Names are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import seng
import seng.apps.train
from seng.lazy import lazy

SOURCE = str(Path(seng.__file__).parent.parent)


def test_lazy_finds_names_in_their_homes_and_keeps_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(seng, "choose", raising=False)
    found = lazy("seng", {"choose": "errors"})("choose")
    assert found is seng.errors.choose  # pyright: ignore[reportAttributeAccessIssue]
    assert vars(seng)["choose"] is found
    monkeypatch.delattr(seng, "choose")


def test_lazy_finds_modules_by_name():
    assert lazy("seng", {})("errors").SengError is seng.errors.SengError  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["nothing", "_hidden", "__wrapped__"])
def test_lazy_refuses_what_is_not_there(name: str):
    with pytest.raises(AttributeError, match=f"module 'seng' has no attribute '{name}'"):
        getattr(seng, name)


@pytest.mark.parametrize("package", [seng, seng.apps.train], ids=lambda package: package.__name__)
def test_lazy_packages_define_all_they_export(package):
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))


def test_import_of_the_package_leaves_torch_alone():
    program = f"import sys; sys.path.insert(0, {SOURCE!r}); import seng; print('torch' in sys.modules)"
    program += "; seng.SENG; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True"]
