"""The program as a whole: help, completion, exit codes, errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import seng
from seng.apps import cli
from seng.apps.recipes import RECIPES, build_recipe
from seng.apps.train.settings import settings

ROOT = Path(seng.__file__).parents[1]
COMMANDS: dict[str, Any] = get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
EXAMPLES = [
    (name, example)
    for name, command in COMMANDS.items()
    for example in re.findall(r"^  (seng .*)$", command.epilog or "", re.MULTILINE)
]


def program(*arguments: str, module: str = "seng", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as its own process."""
    found = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=found)


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_names_the_commands(call):
    code, printed = call("--help")
    assert code == 0
    assert set(COMMANDS) >= {"train", "plan", "recipes"}
    for name, command in COMMANDS.items():
        line = next(line for line in printed.splitlines() if line.startswith(f"  {name} "))
        shown = line.split(maxsplit=1)[1].rstrip(".")
        assert shown
        assert command.help.startswith(shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_examples_and_exit_codes(call, name: str):
    code, printed = call(name, "--help")
    assert code == 0
    assert call(name, "-h") == (code, printed)
    for word in ("Usage:", "Examples:", f"    seng {name}", "Exit codes: 0 done; 1", "130", "143"):
        assert word in printed


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_examples_in_help_are_understood(name: str, example: str):
    _, called, *arguments = shlex.split(example)
    assert called == name
    COMMANDS[name].make_context(name, arguments)


def test_every_command_has_examples():
    assert {name for name, _ in EXAMPLES} == set(COMMANDS)


def test_help_does_not_wait_for_torch():
    listing = "import sys; from seng.apps import cli; import contextlib\n"
    listing += "with contextlib.suppress(SystemExit): cli.main(sys.argv[1:])\n"
    listing += "print({'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules))"
    for arguments in (["--help"], ["train", "--help"], ["--version"], ["plan"]):
        command = [sys.executable, "-c", listing, *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
        assert done.stdout.splitlines()[-1] == "set()", arguments


def test_version_names_what_matters(call):
    code, printed = call("--version")
    assert code == 0
    assert re.fullmatch(rf"seng {re.escape(seng.__version__)}, torch \d+\.\d+\S*, Python \d+\.\d+\.\d+\n", printed)


# -- completion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def completions(call, monkeypatch: pytest.MonkeyPatch):
    """Ask for completions as bash does, the last word being typed."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_SENG_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", shlex.join(["seng", *words[:-1]]) + f" {words[-1]}")
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        code, printed = call()
        assert code == 0
        return printed.split()

    return ask


@pytest.mark.parametrize("command", ["train", "plan"])
def test_completion_knows_recipes(completions, command: str):
    assert completions(command, "fashion-") == [name for name in RECIPES if name.startswith("fashion-")]


def test_completion_knows_commands_and_optimizers(completions):
    assert set(completions("")) >= {"train", "plan", "recipes"}
    assert completions("train", "digits", "--optimizer", "s") == ["seng", "sgd", "soap", "shampoo", "schedule-free"]


def test_completion_knows_settings_of_the_recipe(completions):
    assert completions("plan", "digits", "--set", "refresh_") == ["refresh_every=", "refresh_always_until="]
    assert completions("train", "digits", "--optimizer", "sgd", "--set", "refresh_") == []
    assert completions("train", "digits", "--set", "schedule.w") == ["schedule.warmup_epochs="]
    assert completions("train", "nothing", "--set", "refresh_") == []
    offered = completions("train", "digits", "--set", "")
    assert len(offered) == len(settings(build_recipe("digits")))
    assert {"model.name=", "data.name="} <= set(offered)  # one word alone would be ambiguous


def test_completion_of_zsh_describes():
    asked = {"_SENG_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "seng plan dig"}
    done = program(**asked)
    assert '"digits":"Classify scikit-learn' in done.stdout


def test_completion_can_be_shown():
    done = program(_SENG_COMPLETE="source_bash")
    assert done.returncode == 0
    assert "_SENG_COMPLETE=complete_bash" in done.stdout


# -- exit codes and errors ------------------------------------------------------------------------------------------


def test_module_is_the_program():
    done = program("recipes", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert [recipe["name"] for recipe in listed if recipe["command"] == "train"] == list(RECIPES)


def test_module_shows_errors_without_a_traceback():
    done = program("train", "nothing", "--out", "unused")
    assert done.returncode == 2
    assert re.match(r"error: seng: unknown recipe: expected .*'digits'", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["seng", "seng.cli"])
def test_modules_are_the_program(module: str):
    done = program("--version", module=module)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"seng {seng.__version__}, ")


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("plan", "nothing", "--json"), "OptionError", "unknown recipe"),
        (("plan", "digits", "--json", "--set", "damping=x"), "ConfigError", "bad value for damping"),
        (("recipes", "--json", "--nonsense"), "NoSuchOption", "No such option: --nonsense"),
    ],
)
def test_errors_are_json_for_scripts(arguments, kind: str, words: str):
    done = program(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    told = json.loads(done.stderr)
    assert told.keys() == {"error", "kind"}
    assert told["kind"] == kind
    assert words in told["error"]


def test_exit_codes_of_help_are_those_of_the_page():
    page = ROOT.parent / "docs" / "errors.md"
    if not page.exists():
        pytest.skip("installed without its documentation")
    rows = re.findall(r"^\| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in rows] == [int(code) for code in re.findall(r"\d+", cli.EXIT_CODES)]


def test_unexpected_failures_exit_with_1_and_a_traceback():
    failing = "from seng.apps import cli; cli.app.command('fail')(lambda: 1 / 0); cli.main(['fail'])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", failing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, cli.typer.Abort])
def test_interrupts_exit_with_130(call, monkeypatch, error: type[BaseException]):
    def interrupted(name: str) -> dict[str, Any]:
        raise error

    monkeypatch.setattr("seng.apps.cli.recipes.describe", interrupted)
    code, printed = call("recipes")
    assert code == 130
    assert "Traceback" not in printed


def test_without_a_command_help_is_shown(call):
    _, printed = call()
    assert "Usage: seng" in printed
    assert "Commands:" in printed
