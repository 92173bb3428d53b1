"""The program ``seng``; ``python -m seng.cli`` is the same program. A command is one file and one line here."""

from __future__ import annotations

import sys
from typing import Any

try:
    import typer
    from rich.console import Console
except ImportError as error:  # pragma: no cover
    raise SystemExit(f"seng: {error.name} is missing. Run: pip install 'seng[train]'") from error

from ..errors import SengError
from .recipes import recipes_command
from .train import train_command

EPILOG = "Exit codes: 0 done, 1 an unexpected failure, 2 a wrong option or unusable data, 130 interrupted."

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def program() -> None:
    """Natural gradients in sample space: train networks on real data."""


app.command("train", epilog=EPILOG)(train_command)
app.command("recipes")(recipes_command)


def main(arguments: list[str] | None = None) -> Any:
    """Run the program; errors that a user can mend are shown as one line, without a traceback.

    Args:
        arguments: what follows the program's name; None: the process's own.
    """
    try:
        app(arguments, prog_name="seng")
    except SengError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
