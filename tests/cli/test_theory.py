"""``seng theory``, as a person and as a script calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ("ntk", "width 512, condition"),
        ("stationarity", "of the bound"),
        ("sketches", "sparse_sign, size 256: error"),
        ("solvers", "nystrom, 4 steps, size 64: error"),
    ],
)
def test_theory_leaves_numbers_and_a_picture(call, tmp_path: Path, study: str, said: str):
    code, printed = call("theory", study, "--out", tmp_path / "new", "--quick")
    assert code == 0
    assert said in printed
    numbers, picture = tmp_path / "new" / f"{study}.json", tmp_path / "new" / f"{study}.png"
    assert json.loads(numbers.read_text())
    assert picture.read_bytes().startswith(PNG)
    assert str(picture) in printed


def test_theory_tells_scripts(call, tmp_path: Path):
    code, printed = call("theory", "sketches", "--out", tmp_path, "--quick", "--json", "--seed", "3")
    assert code == 0
    assert json.loads(printed) == json.loads((tmp_path / "sketches.json").read_text())


def test_theory_refuses_what_it_does_not_know(call, tmp_path: Path):
    code, printed = call("theory", "nkt", "--out", tmp_path / "new")
    assert code == 2
    assert (
        "unknown study: expected 'ntk' | 'stationarity' | 'sketches' | 'solvers', got 'nkt'. Did you mean 'ntk'"
        in printed
    )
    assert not (tmp_path / "new").exists()
