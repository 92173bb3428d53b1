"""The program ``seng``; ``python -m seng`` is the same program. A command is one file and one line here.

Commands import torch when they run, not when they are defined: help and completions do not wait for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NoReturn

try:
    import typer
    from rich.console import Console
except ImportError as error:  # pragma: no cover
    raise SystemExit(f"seng: {error.name} is missing. Run: pip install 'seng[train]'") from error

from ... import __version__
from ...errors import SengError
from . import bench, plan, recipes, report, science, theory, train

EXIT_CODES = (
    "Exit codes: 0 done; 1 an unexpected failure; 2 a wrong option or unusable data; 130 interrupted (Ctrl-C); "
    "143 terminated (SIGTERM)."
)
UNUSABLE, INTERRUPTED = 2, 130

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _epilog(*examples: str) -> str:
    """Return what stands below a command's options: examples, a line each, and the exit codes."""
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples), "", EXIT_CODES])


def _show_version(asked: bool) -> None:
    if asked:
        try:
            torch = version("torch")  # without the seconds that importing it takes
        except PackageNotFoundError:  # pragma: no cover
            torch = "missing"
        print(f"seng {__version__}, torch {torch}, Python {sys.version.split()[0]}")
        raise typer.Exit


@app.callback(epilog=_epilog("seng recipes", "seng plan digits", "seng train digits --out runs/digits"))
def program(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Natural gradients in sample space: train networks on real data."""


def _add(name: str, command: Callable[..., None], examples: tuple[str, ...]) -> None:
    app.command(name, epilog=_epilog(*examples))(command)


_add("train", train.train_command, train.EXAMPLES)
_add("plan", plan.plan_command, plan.EXAMPLES)
_add("report", report.report_command, report.EXAMPLES)
_add("science", science.science_command, science.EXAMPLES)
_add("theory", theory.theory_command, theory.EXAMPLES)
_add("bench", bench.bench_command, bench.EXAMPLES)
_add("recipes", recipes.recipes_command, recipes.EXAMPLES)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the program; errors that a user can mend are shown as one line, without a traceback.

    Args:
        arguments: what follows the program's name; None: the process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code: Any = app(given, prog_name="seng", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        _fail(_told(error), as_json="--json" in given)
    sys.exit(code or 0)


def _told(error: Exception) -> Exception:
    """Return what is to be said of an error: that files cannot be read or written is no fault of the program."""
    if not isinstance(error, OSError) or error.errno is None:
        return error
    fix = "Make room or correct permissions, or choose another folder"
    return SengError("seng", "the system refuses", expected="files to read and write", got=str(error), fix=fix)


def _fail(error: Exception, as_json: bool) -> NoReturn:
    """Tell an error on the standard error stream and exit; what is no mistake of the caller's is raised again."""
    usage = hasattr(error, "format_message")  # of click, from wherever typer takes it
    if not usage and not isinstance(error, SengError):
        raise error
    if as_json:
        message = error.format_message() if usage else str(error)  # pyright: ignore[reportAttributeAccessIssue]
        print(json.dumps({"error": message, "kind": type(error).__name__}), file=sys.stderr)
    elif usage:
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"error: {error}", style="red", markup=False)
    sys.exit(getattr(error, "exit_code", UNUSABLE))
