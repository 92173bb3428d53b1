"""The commands in the README exist, with the options and settings they name."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from seng.cli import app
from seng.recipes import RECIPES, build_recipe
from seng.train.settings import override, settings

from .pages import README, ROOT, text_of

COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^seng .*$", text_of(README), re.MULTILINE)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_is_understood(command: list[str]) -> None:
    program: Any = get_command(app)
    name, *arguments = command
    values = program.commands[name].make_context(name, list(arguments)).params
    if name == "train":
        recipe = build_recipe(values["recipe"] or "digits", values["optimizer"] or "seng")
        changes = dict(text.split("=") for text in values["assignments"] or ())
        assert settings(override(recipe, changes)).keys() >= changes.keys()


def test_commands_are_found() -> None:
    assert {command[0] for command in COMMANDS} == {"recipes", "train"}
    assert {argument for command in COMMANDS for argument in command} >= set(RECIPES)


def test_make_targets_exist() -> None:
    makefile = text_of(ROOT / "Makefile")
    for target in set(re.findall(r"make (train|test|docs)\b", text_of(README))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert set(re.findall(r"^make (\w+)", text_of(README), re.MULTILINE)) == {"train", "test"}
