"""The public surface: documented, with examples that run, and on torch and jaxtyping alone."""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import seng

SOURCE = Path(seng.__file__).parent
# what may ask for the packages of its extras
APPLICATIONS = ("apps", "cli", "__main__", "integrations")
ALLOWED = {"torch", "jaxtyping", "seng", *sys.stdlib_module_names}


def core_names() -> list[str]:
    names = ["seng", *(info.name for info in pkgutil.walk_packages(seng.__path__, "seng."))]
    return [name for name in names if not name.startswith(tuple(f"seng.{part}" for part in APPLICATIONS))]


MODULES = [import_module(name) for name in core_names()]
FILES = sorted(SOURCE.rglob("*.py"))
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file, but for type checkers alone."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - for_types:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def public_members(module: ModuleType) -> list[tuple[str, object]]:
    """Public classes and functions that a module defines, and the public methods of those classes."""
    found: list[tuple[str, object]] = []
    for name, value in vars(module).items():
        defined_here = getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not defined_here or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        found.append((f"{module.__name__}.{name}", value))
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and (
                    callable(member) or isinstance(member, property | staticmethod | classmethod)
                ):
                    found.append((f"{module.__name__}.{name}.{key}", getattr(value, key)))
    return found


# properties whose meaning is the name of the field or axis, in classes that describe it
SELF_EVIDENT = {"n", "positions", "dtype", "d_in", "size", "shapes"}


def test_exports_exist_and_are_sorted() -> None:
    assert sorted(seng.__all__) == sorted(set(seng.__all__))
    assert all(hasattr(seng, name) for name in seng.__all__)


@pytest.mark.parametrize("name", [name for name in seng.__all__ if name not in ("__version__", "BASES")])
def test_every_export_is_documented(name: str) -> None:
    doc = inspect.getdoc(getattr(seng, name))
    assert doc
    assert doc != inspect.getdoc(type(getattr(seng, name)))
    assert doc.splitlines()[0].endswith((".", "``."))


@each_module
def test_every_module_is_documented(module: ModuleType) -> None:
    assert inspect.getdoc(module)


@each_module
def test_every_public_member_is_documented(module: ModuleType) -> None:
    missing = [
        name
        for name, member in public_members(module)
        if not inspect.getdoc(member) and name.rsplit(".", 1)[-1] not in SELF_EVIDENT
    ]
    assert missing == []


def test_members_are_found_at_all() -> None:
    names = {name for module in MODULES for name, _ in public_members(module)}
    assert {
        "seng.optimizer.SENG",
        "seng.optimizer.SENG.step",
        "seng.errors.choose",
        "seng.planning.report.Plan.nbytes",
    } <= names


@each_module
def test_examples_run(module: ModuleType) -> None:
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    with_examples = {test.name for module in MODULES for test in finder.find(module) if test.examples}
    assert {"seng.optimizer.SENG", "seng.preconditioner.Preconditioner", "seng.schedules.Exponential"} <= with_examples


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_core_imports_torch_and_jaxtyping_alone(path: Path) -> None:
    packages = imported(path)
    assert "torchvision" not in packages
    if path.relative_to(SOURCE).parts[0].removesuffix(".py") not in APPLICATIONS:
        assert packages <= ALLOWED


def test_core_loads_no_application_and_none_of_their_packages() -> None:
    program = """
import sys
import torch
import seng, seng.testing
model = torch.nn.Linear(3, 2)
optimizer = seng.SENG(model)
model(torch.randn(4, 3)).square().mean().backward()
optimizer.step()
print(*sys.modules)
"""
    arguments = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(SOURCE.parent)]!r}\n{program}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    loaded = done.stdout.split()
    assert "seng.testing" in loaded
    assert not {"torchvision", "typer", "rich", "sklearn", "matplotlib", "hypothesis"} & set(loaded)
    assert not [name for name in loaded if name.startswith(tuple(f"seng.{part}" for part in APPLICATIONS))]


def test_package_says_that_it_is_typed() -> None:
    assert (SOURCE / "py.typed").exists()


def test_version_is_that_of_the_project() -> None:
    project = SOURCE.parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its project")
    assert f'version = "{seng.__version__}"' in project.read_text(encoding="utf-8")
