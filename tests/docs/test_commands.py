"""The commands in the README exist, with the options and settings they name."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from seng.apps.cli import app
from seng.apps.recipes import RECIPES, build_recipe
from seng.apps.train.settings import override, settings

from .pages import DOCS, README, ROOT, text_of

RECIPE_PAGES = sorted((DOCS / "recipes").glob("*.md"))
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for page in (README, *RECIPE_PAGES)
    for line in re.findall(r"^seng .*$", text_of(page).replace("torchrun --nproc-per-node 4 -m seng", "seng"), re.M)
]


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
    assert {command[0] for command in COMMANDS} == {"recipes", "plan", "train", "report", "science", "theory"}
    assert {argument for command in COMMANDS for argument in command} >= set(RECIPES)


def test_every_recipe_has_a_page_with_its_command() -> None:
    assert {page.stem for page in RECIPE_PAGES} == {"index", *RECIPES}
    for name in RECIPES:
        text = text_of(DOCS / "recipes" / f"{name}.md")
        assert f"train {name} --out" in text
        assert f"({name}.md)" in text_of(DOCS / "recipes" / "index.md")


def test_make_targets_exist() -> None:
    makefile = text_of(ROOT / "Makefile")
    for target in set(re.findall(r"make (train|test|docs)\b", text_of(README))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert set(re.findall(r"^make (\w+)", text_of(README), re.MULTILINE)) == {"train", "test"}
