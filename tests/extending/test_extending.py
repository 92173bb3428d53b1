"""What a third party adds takes one file and at most one line of a table; an option takes two lines."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import seng
from seng import SENG, LowRank, Preconditioner, Sketched
from seng.errors import OptionError
from seng.estimators import ESTIMATORS, Estimator
from seng.sketch import SKETCHES
from seng.solve import SolveState
from seng.testing import check_estimator, check_sketch

from ..runs import backward, batch, perceptron
from .columns import Columns
from .srht import srht

# applications, whose settings are text, and an engine with options of its own
APART = {"apps", "cli", "func", "recipes", "report", "science", "theory", "train"}
ROUNDING = 1e-11  # float64, for two ways to the same sums


@pytest.fixture
def srht_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SKETCHES, "srht", srht)


def trained(estimator: Any, steps: range, state: dict[str, Any] | None = None) -> tuple[nn.Module, SENG]:
    """Run some steps, from the state of an earlier run where there is one."""
    model = perceptron()
    optimizer = SENG(model, lr=0.05, refresh_every=2, estimator=estimator)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in steps:
        backward(model, *batch(step))
        optimizer.step()
    return model, optimizer


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def resumes_bit_for_bit(estimator: Estimator) -> None:
    whole, _ = trained(estimator, range(6))
    model, optimizer = trained(estimator, range(3))
    file = BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    resumed, _ = trained(estimator, range(3, 6), torch.load(file, weights_only=True))
    assert torch.equal(flat(resumed), flat(whole))


@pytest.mark.usefixtures("srht_line")
def test_sketch_of_a_third_party_keeps_the_contract() -> None:
    check_sketch("srht")


@pytest.mark.usefixtures("srht_line")
@pytest.mark.parametrize("estimator", [lambda: Sketched("srht", rows=5), lambda: LowRank(rows=3, sketch="srht")])
def test_sketch_of_a_third_party_trains_and_resumes(estimator: Any) -> None:
    _, optimizer = trained(estimator(), range(1))
    sketches = [curvature.factor for curvature in optimizer.preconditioner._curvature.values()]
    assert any("Hadamard" in repr(factor) for factor in sketches)
    resumes_bit_for_bit(estimator())


def test_sketch_is_unknown_without_its_line() -> None:
    with pytest.raises(OptionError, match=r"^Sketched\(\): unknown sketch: expected 'uniform' \| .*, got 'srht'\."):
        Sketched("srht")


def test_estimator_of_a_third_party_keeps_the_contract() -> None:
    check_estimator(Columns())
    check_estimator(Columns(), ema=0.0, power=1.0)


def test_estimator_of_a_third_party_trains_as_the_exact_one_and_resumes() -> None:
    (ours, _), (exact, _) = trained(Columns(), range(4)), trained("exact", range(4))
    torch.testing.assert_close(flat(ours), flat(exact), rtol=ROUNDING, atol=ROUNDING)
    resumes_bit_for_bit(Columns())


def test_estimator_of_a_third_party_is_planned_and_named() -> None:
    model, (x, y) = perceptron(), batch()
    planned = seng.plan(model, x, estimator=Columns())
    assert {row.choice.form.name for row in planned.rows} == {"columns"}
    pre = Preconditioner(model, estimator=Columns())
    backward(model, x, y)
    pre.step()
    held = sum(own.nbytes() + 8 * own.samples * (own.samples + 1) for own in pre._curvature.values())
    assert planned.nbytes == pytest.approx(held, rel=0.05)  # eigenvalues come on top of the square
    assert set(pre.coverage().preconditioned.values()) == {"columns: asked for"}


def test_one_line_gives_an_estimator_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="unknown estimator"):
        trained("columns", range(0))
    monkeypatch.setitem(ESTIMATORS, "columns", Columns)
    _, optimizer = trained("columns", range(1))
    assert optimizer.preconditioner.options.estimator == Columns()


USE = """
import inspect, seng
from torch import nn
optimizer = seng.SENG(nn.Linear(2, 2), brightness=3.0)
assert optimizer.preconditioner.options.brightness == 3.0
for call in (seng.SENG, seng.Preconditioner, seng.plan):
    assert inspect.signature(call).parameters["brightness"].default == 1.0
print("shines")
"""


def test_option_takes_two_lines(tmp_path: Path) -> None:
    source = Path(seng.__file__).parent
    shutil.copytree(source, tmp_path / "seng", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "seng" / "config.py"
    text = file.read_text(encoding="utf-8")
    for line in ("    seed: int\n", "    seed: int = 0\n"):
        assert text.count(line) == 1
        text = text.replace(line, line + line.replace("seed: int", "brightness: float").replace("0", "1.0"))
    file.write_text(text, encoding="utf-8")
    command, path = [sys.executable, "-c", USE], {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True)
    assert run.stdout.split() == [b"shines"], run.stderr.decode()


def compared(path: Path) -> set[str]:
    """Return the strings that a file compares something with."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            parts = [inner for side in (node.left, *node.comparators) for inner in ast.walk(side)]
            found |= {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return found


def test_nothing_is_compared_with_the_name_of_an_estimator_sketch_or_solver() -> None:
    forms = {"operator", "sketched-rows", "implicit", "truncated", "paper-code"}
    solvers = {kind.name for kind in SolveState.TYPES.values() if kind.__module__.startswith("seng.")}
    names = (forms | set(ESTIMATORS) | set(SKETCHES) | solvers) - {"auto"}  # which other options have, too
    files = [path for path in Path(seng.__file__).parent.rglob("*.py") if not APART & set(path.parts)]
    assert {str(path): found for path in files if (found := compared(path) & names)} == {}
