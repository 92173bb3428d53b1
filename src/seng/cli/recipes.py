"""``seng recipes``: what can be trained."""

from __future__ import annotations

from rich.console import Console

from ..recipes import RECIPES, build_recipe, summary


def recipes_command() -> None:
    """List the recipes and whether their data is here."""
    from ..train.data import data_status  # waits for torch, which --help does not need

    console = Console(highlight=False, soft_wrap=True)
    for name in RECIPES:
        console.print(f"[bold]{name}[/bold]  (data: {data_status(build_recipe(name).data)})")
        console.print(f"    {summary(name)}")
