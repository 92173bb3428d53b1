"""Every example runs; those of other libraries are skipped, with a word, where these are not installed."""

from __future__ import annotations

import runpy
from collections.abc import Iterator

import pytest
import torch

from .pages import DOCS, ROOT, text_of

EXAMPLES = {  # packages that it needs, steps that it gets here, the error that it ends below
    "fit_poisson.py": ((), 40, 0.1),
    "deepxde_diffusion.py": (("deepxde",), 20, 0.1),
    "pina_poisson.py": (("pina",), 30, 0.1),
}


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    default = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default)


@pytest.mark.usefixtures("apart")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str) -> None:
    packages, steps, bound = EXAMPLES[name]
    for package in packages:
        pytest.importorskip(package, reason=f"needs {package}: pip install 'seng[{package}]'")
    assert runpy.run_path(str(ROOT / "examples" / name))["main"](steps) < bound


def test_examples_are_listed_and_told_of() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    told = text_of(DOCS / "integrations.md")
    assert all(f"examples/{name}" in told for name in EXAMPLES)
