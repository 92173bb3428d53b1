"""What several commands ask for: recipes, optimizers and settings, with completions that know them."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from ...errors import SengError
from ..recipes import RECIPES, build_recipe, summary
from ..train.config import OptimizerName
from ..train.errors import ConfigError
from ..train.settings import settings


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Return the recipes that begin as typed, each with its summary."""
    return [(name, summary(name)) for name in RECIPES if name.startswith(incomplete)]


def complete_optimizer(incomplete: str) -> list[str]:
    """Return the optimizers that begin as typed."""
    return [name for name in get_args(OptimizerName) if name.startswith(incomplete)]


def complete_setting(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the settings of the recipe typed so far that begin as typed, each with its value there.

    The last word stands for a setting where no other has the same, else the whole path does.
    """
    given = context.params
    recipes = [given.get("recipe"), *context.args, "digits"]  # a line cut after --set leaves its words in args
    try:
        known = settings(build_recipe(next(filter(None, recipes)), given.get("optimizer") or "seng"))
    except SengError:
        return []
    words = [path.rsplit(".", 1)[-1] for path in known]
    found = []
    for (path, value), word in zip(known.items(), words, strict=True):
        name = path if "." in incomplete or words.count(word) > 1 else word
        if name.startswith(incomplete):
            found.append((f"{name}=", str(value)))
    return found


RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a recipe; `seng recipes` lists them.", autocompletion=complete_recipe)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change any setting; may be repeated.",
        autocompletion=complete_setting,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, errors too.")]


def assignment(text: str, call: str) -> tuple[str, str]:
    """Split what follows ``--set`` into a name and a value.

    Raises:
        ConfigError: There is no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(call, "bad --set", expected="name=value", got=text, fix="Write --set damping=0.3, say")
    return name.strip(), value.strip()
