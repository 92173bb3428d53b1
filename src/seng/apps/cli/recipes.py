"""``seng recipes``: what can be trained."""

from __future__ import annotations

import json
from typing import Any, get_args

from rich.console import Console

from ...errors import OptionError
from ..recipes import RECIPES, build_recipe, summary
from ..train.config import OptimizerName
from .options import AsJson

EXAMPLES = ("seng recipes", "seng recipes --json")


def recipes_command(as_json: AsJson = False) -> None:
    """List what can be trained, and what can be solved.

    Each recipe with its data and whether they are here, its network, epochs, batch and optimizers; then each scientific
    problem with its network.
    """
    described, problems = [describe(name) for name in RECIPES], _problems()
    if as_json:
        print(json.dumps([*described, *problems], indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for recipe in described:
        console.print(f"[bold]{recipe['name']}[/bold]  (data: {recipe['data']['status']})")
        console.print(f"    {recipe['summary']}", markup=False)
        facts = f"{recipe['epochs']} epochs of batches of {recipe['batch_size']}; {', '.join(recipe['optimizers'])}"
        console.print(f"    {recipe['model']}, {facts}", markup=False)
    for problem in problems:
        console.print(f"[bold]{problem['name']}[/bold]  (seng science)")
        console.print(f"    {problem['summary']}", markup=False)
        console.print(f"    {problem['model']}, {problem['seconds']:g} CPU seconds; {', '.join(problem['methods'])}")


def describe(name: str) -> dict[str, Any]:
    """Return what a recipe trains, as plain values."""
    from ..train.data import data_status  # waits for torch, which --help does not need

    config = build_recipe(name)
    return {
        "name": name,
        "command": "train",
        "summary": summary(name),
        "data": {"name": config.data.name, "status": data_status(config.data)},
        "model": config.model.name,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "optimizers": [optimizer for optimizer in get_args(OptimizerName) if _has(name, optimizer)],
    }


def _problems() -> list[dict[str, Any]]:
    from .. import science  # waits for torch, too

    return [
        {
            "name": name,
            "command": "science",
            "summary": science.summary(name),
            "model": "tanh network " + "-".join(map(str, problem.sizes)),
            "seconds": problem.seconds,
            "methods": list(science.METHODS),
        }
        for name, problem in ((name, make()) for name, make in science.PROBLEMS.items())
    ]


def _has(name: str, optimizer: str) -> bool:
    try:
        build_recipe(name, optimizer)
    except OptionError:
        return False
    return True
