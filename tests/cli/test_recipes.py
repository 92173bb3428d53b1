"""``seng recipes``, as a person calls it."""

from __future__ import annotations

from pathlib import Path


def test_recipes_lists_each_with_its_data(call, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SENG_DATA", str(tmp_path))
    code, printed = call("recipes")
    assert code == 0
    assert "digits  (data: comes with scikit-learn)" in printed
    assert "fashion-resnet  (data: absent: apt-get install dataset-fashion-mnist)" in printed
