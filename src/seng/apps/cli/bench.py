"""``seng bench``: optimizers compared on equal terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ...errors import choose
from .options import AsJson

if TYPE_CHECKING:
    from ..bench import Suite

EXAMPLES = (
    "seng bench core --out benchmarks/results/bench --jobs 2",
    "seng bench char-gpt --out runs/bench --optimizer seng --optimizer muon --budget seconds",
    "seng bench core --out runs/quick --quick",
)
CALL = "seng bench"


def bench_command(
    suite: Annotated[str, typer.Argument(help="core, large-batch, or the name of one workload.")],
    out: Annotated[Path, typer.Option(help="Folder for the trials, a JSON object a line, and the report.")],
    optimizer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare this optimizer only; may be repeated.", show_default="all"),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="seconds or steps; may be repeated.", show_default="both"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that run trials at the same time.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A twentieth of each budget, on small workloads: a check, no comparison.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; write the report from the trials in --out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare optimizers on equal terms.

    Each optimizer is tuned in the same number of trials and then run with five other seeds, once for equal CPU seconds
    and once for equal steps. The trials are added to trials.jsonl in --out as they end: the same command goes on where
    it was stopped. The report is report.md, with the same numbers in summary.json.
    """
    from ..bench import FULL, QUICK, Lines, run_suite, write_report  # these wait for torch
    from ..train.folder import locked

    chosen = _suite(suite, optimizer, budget, quick)
    protocol = QUICK if quick else FULL
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, CALL):
        lines = Lines(out / "trials.jsonl")
        if not report_only:
            run_suite(chosen, protocol, lines, jobs=jobs, tell=lambda line: console.print(_told(line), markup=False))
        written = write_report(lines, out, protocol.name)
    if as_json:
        print(written[1].read_text(encoding="utf-8"), end="")
    console.print(f"{len(lines)} trials; report: {written[0]}", markup=False)


def _suite(name: str, optimizers: list[str] | None, budgets: list[str] | None, quick: bool) -> Suite:
    """Return a suite, restricted as asked; with ``quick`` to its light workloads where it has any."""
    from ..bench import OPTIMIZERS, SUITES, WORKLOADS
    from ..bench.protocol import BUDGETS

    suite = choose(SUITES, name, call=CALL, option="suite")
    changes: dict[str, Any] = {}
    if optimizers:
        for each in optimizers:
            choose(OPTIMIZERS, each, call=CALL, option="optimizer")
        changes["optimizers"] = tuple(dict.fromkeys(optimizers))
    if budgets:
        kinds = {str(kind): kind for kind in BUDGETS}
        changes["budgets"] = tuple(dict.fromkeys(choose(kinds, each, call=CALL, option="budget") for each in budgets))
    if quick:
        light = tuple(each for each in suite.workloads if WORKLOADS[each].light)
        changes["workloads"] = light or suite.workloads
    return replace(suite, **changes)


def _told(line: dict[str, Any]) -> str:
    """Return what is printed of a trial."""
    run = f"{line['workload']}, {line['budget']}, {line['optimizer']}, {line['stage']} {line['number']}"
    if line["ended"] != "budget":
        return f"{run}, seed {line['seed']}: {line['ended']} {line['error']}"
    return f"{run}, seed {line['seed']}: loss {line['loss']:.4g}, {line['steps']} steps, {line['seconds']:.1f} s"
