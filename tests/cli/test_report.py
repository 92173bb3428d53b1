"""``seng report`` as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..report.made import make_run

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two run folders."""
    return [make_run(tmp_path / "runs" / name, name, epochs=2) for name in ("seng", "sgd")]


def test_report_writes_a_page_and_pictures_and_names_them(call: Call, runs: list[Path], tmp_path: Path):
    code, printed = call("report", runs[1], runs[1], "--out", tmp_path / "new" / "page.html")
    assert code == 0
    written = {path.name for path in (tmp_path / "new").iterdir()}
    pictures = {f"page-{name}.png" for name in ("overview", "curves", "time")}
    assert written == pictures | {"page.html"}
    assert all(str(tmp_path / "new" / name) in printed for name in written)
    assert "sgd was given 2 times and is shown once." in printed


def test_report_prints_json_for_scripts(call: Call, runs: list[Path], tmp_path: Path):
    out = tmp_path / "page.html"
    code, printed = call("report", *runs, "--out", out, "--target", "test_loss=1.5", "--json")
    assert code == 0
    told = json.loads(printed)
    assert told["page"] == str(out)
    assert all(Path(picture).exists() for picture in told["pictures"])
    records = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "epoch"][-1]
    assert told["runs"][0]["last"]["test_loss"] == last["test_loss"]
    assert told["runs"][0]["targets"][0] == {"metric": "test_loss", "value": 1.5, "step": 20, "seconds": 0.4}


def test_report_names_what_it_cannot_show(call: Call, runs: list[Path], tmp_path: Path):
    code, printed = call("report", tmp_path, "--out", tmp_path / "page.html")
    assert (code, "this is no run" in printed, "config.json" in printed) == (2, True, True)
    code, printed = call("report", runs[0], "--target", "speed=3", "--out", tmp_path / "page.html")
    assert (code, "the target is out of range" in printed) == (2, True)
    code, printed = call("report", runs[0], "--out", runs[0] / "config.json" / "page.html")
    assert (code, "the report cannot be written" in printed) == (2, True)
    assert not (tmp_path / "page.html").exists()


def test_report_wants_a_run(call: Call):
    code, printed = call("report")
    assert code == 2
    assert "RUN..." in printed


def test_help_does_not_wait_for_the_plotting_libraries():
    code = "import sys; from seng.apps import cli\ntry: cli.main(['report', '--help'])\nexcept SystemExit: pass\n"
    code += "print({'plotly', 'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "seng report runs/* --target test_accuracy=0.97" in done.stdout
