"""``seng science``: solve a scientific problem, by one method or several."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ...errors import OptionError, choose
from .options import AsJson, assignment

if TYPE_CHECKING:
    from ..science import Method, Problem, Record
    from ..science.folder import Folder

EXAMPLES = (
    "seng science poisson-2d --out runs/poisson",
    "seng science burgers --out runs/burgers --method natural --method adam --method soap --method lbfgs",
    "seng science heat --out runs/heat --method adam --set lr=0.01 --seconds 10 --json",
)
CALL = "seng science"
SWITCH = {"true": True, "True": True, "false": False, "False": False}
SHOWN = 10  # lines a run prints


def science_command(
    problem: Annotated[str, typer.Argument(help="What to solve; `seng recipes` lists the problems.")],
    out: Annotated[Path, typer.Option(help="Folder for records, networks and pictures.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="natural, adam, soap or lbfgs; may be repeated.  [default: natural]", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="S", help="CPU seconds a method is given.", show_default="the problem's"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial network and of the points.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; their CPU seconds are added up.")] = 1,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the methods; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace runs of the same methods in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Solve a scientific problem.

    Leaves each method's records (a JSON object a line) and network in --out, and pictures: the solution beside the
    exact one, and the errors of all runs in the folder against CPU seconds.
    """
    import torch  # this waits for torch, which --help does not need

    from ..science import PROBLEMS
    from ..science.folder import Folder

    torch.set_num_threads(threads)
    console = Console(highlight=False, soft_wrap=True, quiet=as_json)
    posed = choose(PROBLEMS, problem, call=CALL, option="problem")()
    changes = dict(assignment(text, CALL) for text in assignments or ())
    folder = Folder(out, problem, overwrite)
    chosen = {name: _method(posed, name, changes) for name in method or ["natural"]}
    for name in chosen:
        folder.require_room(name)
    given = posed.seconds if seconds is None else seconds
    ended = {name: _solve(posed, name, chosen[name], folder, given, seed, console) for name in chosen}
    pictures = _draw(posed, folder, list(chosen))
    if as_json:
        runs = {name: asdict(record) for name, record in ended.items()}
        print(json.dumps({"problem": problem, "runs": runs, "pictures": [str(path) for path in pictures]}, indent=2))
    for path in pictures:
        console.print(f"picture: {path}", markup=False)


def _method(problem: Problem, name: str, changes: dict[str, str]) -> Method:
    """Return a method with the problem's settings, changed as asked."""
    from ..science import METHODS

    method = choose(METHODS, name, call=CALL, option="method")(**problem.settings.get(name, {}))
    values: dict[str, Any] = {}
    for field in fields(method):
        if field.name in changes:
            values[field.name] = _read(field.name, changes[field.name], getattr(method, field.name))
    unknown = sorted(set(changes) - set(values))
    if unknown:
        raise OptionError(
            CALL, f"{name} has no such setting", expected="one of " + ", ".join(f.name for f in fields(method)),
            got=", ".join(unknown), fix="Change a setting that all chosen methods have",
        )  # fmt: skip
    return replace(method, **values)


def _read(name: str, text: str, default: Any) -> Any:
    """Return a value of the default's type."""
    kind = SWITCH.__getitem__ if isinstance(default, bool) else type(default)
    try:
        return kind(text)
    except (ValueError, KeyError):
        raise OptionError(
            CALL, f"bad --set {name}", expected=f"a value like {default!r}", got=text, fix="Write a value of that kind"
        ) from None


def _solve(
    problem: Problem, name: str, method: Method, folder: Folder, seconds: float, seed: int, console: Console
) -> Record:
    """Run one method and return its last record."""
    import torch

    from ... import __version__
    from ..science import run

    net = problem.network(seed)
    head = {
        "settings": asdict(method), "seconds": seconds, "seed": seed, "seng": __version__,
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    console.print(f"{name}: {seconds:g} CPU seconds, {sum(p.numel() for p in net.parameters())} parameters")
    due, record = 0.0, None
    for record in folder.write(name, head, run(problem, method, net, seconds, seed)):
        if record.seconds >= due:
            console.print(
                f"  step {record.step}, {record.seconds:.1f} s: loss {record.loss:.2e}, error {record.error:.2e}"
            )
            due += seconds / SHOWN
    folder.save(name, net)
    assert record is not None
    console.print(f"{name}: {record.step} steps, relative error {record.error:.2e}")
    return record


def _draw(problem: Problem, folder: Folder, methods: list[str]) -> list[Path]:
    from ...pickles import load_tensors
    from ..science.pictures import draw_errors, draw_solution

    pictures = [folder.path / "errors.png"]
    draw_errors(folder.runs(), pictures[0], folder.problem)
    for name in methods:
        net = problem.network(0)
        net.load_state_dict(load_tensors(folder.path / f"{name}.pt"))
        pictures.append(folder.path / f"solution-{name}.png")
        draw_solution(problem, net, pictures[-1], f"{folder.problem}, {name}")
    return pictures
