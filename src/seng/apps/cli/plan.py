"""``seng plan``: what a recipe's curvature will hold and cost, before anything is spent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..recipes import build_recipe
from ..train.config import RunConfig, SengConfig
from ..train.errors import ConfigError
from ..train.settings import override
from .options import AsJson, Assignments, RecipeArgument, assignment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...planning.network import Forecast
    from ...planning.report import Plan

EXAMPLES = (
    "seng plan imagenet-resnet50 --processes 4 --ranks 1024 --bandwidth 25 --latency 10 --rate 8000",
    "seng plan imagenet-resnet50 --processes 4",
    "seng plan digits --batch-size 256 --intervals 1,5,25",
    "seng plan fashion-resnet --set estimator=implicit --set rank=8 --json",
)
MOST_RANKS = 2**20
ASSUMED_RATE = 50.0  # GFLOP/s
LEGEND = "n samples, s positions, features in -> out; shares of the flops, not the time, of these layers' backward"
UNBOUNDED = 200  # columns of a table that goes to a file


def plan_command(
    recipe: RecipeArgument,
    optimizer: Annotated[str, typer.Option(help="seng: no other keeps curvature.")] = "seng",
    batch_size: Annotated[str | None, typer.Option(metavar="N", help="Samples a step, over all processes.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share a step's samples.")] = 1,
    intervals: Annotated[
        str, typer.Option(metavar="N,N,...", help="Steps between refreshes to tell costs for.")
    ] = "1,10,100,200,1000",
    ranks: Annotated[
        int | None, typer.Option(min=1, max=MOST_RANKS, help="Tell a step of each strategy, up to so many ranks.")
    ] = None,
    bandwidth: Annotated[float, typer.Option(min=1e-6, metavar="GB/S", help="Of a rank's network.")] = 10.0,
    latency: Annotated[float, typer.Option(min=0.0, metavar="US", help="Microseconds a message takes.")] = 20.0,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            metavar="GFLOP/S",
            help=f"Operations a second of a rank.  [default: {ASSUMED_RATE:g}, a CPU core's; of a GPU 10000 or more]",
        ),
    ] = None,
    step_rate: Annotated[
        float | None, typer.Option(min=1e-6, metavar="GFLOP/S", help="Of preconditioning, if memory bounds it.")
    ] = None,
    step_ms: Annotated[
        float | None, typer.Option(min=0.0, metavar="MS", help="Measured step of a rank without curvature.")
    ] = None,
    collectives: Annotated[str, typer.Option(metavar="SHAPE", help="ring or tree.")] = "ring",
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a recipe will hold and cost.

    Neither data nor a device is needed. Each layer is listed with its shape, the estimator chosen and why, the memory
    of its curvature, and the flops of a refresh and of its use at every step; then the totals for several intervals
    between refreshes.

    With --ranks it tells instead, from 1 to so many ranks that each have the samples of one of --processes, what a step
    takes under each strategy, what travels and what is held. Nothing is taken to overlap.
    """
    changes = {"batch_size": batch_size} if batch_size is not None else {}
    changes |= dict(assignment(text, "seng plan") for text in assignments or ())
    config = override(build_recipe(recipe, optimizer), changes)
    steps = _intervals(intervals)
    if ranks is not None:
        network = {"latency": latency * 1e-6, "bandwidth": bandwidth * 1e9, "shape": collectives}
        seconds = None if step_ms is None else step_ms * 1e-3
        step_flops = None if step_rate is None else step_rate * 1e9
        flops = (ASSUMED_RATE if rate is None else rate) * 1e9
        found = forecast_run(config, processes, worlds(ranks), network, flops, seconds, step_flops)
        taken = {
            "rate_gflops": flops / 1e9,
            "rate_assumed": rate is None,
            "bandwidth_gb": bandwidth,
            "latency_us": latency,
        }
        show_forecasts(found, config, processes, taken, as_json)
        return
    planned = plan_run(config, processes)
    if as_json:
        head = {"recipe": recipe, "batch_size": config.batch_size, "processes": processes}
        print(json.dumps(head | planned.to_dict(steps), indent=2))
        return
    show(planned, config, processes, steps)


def plan_run(config: RunConfig, processes: int = 1) -> Plan:
    """Plan what one process of a run holds and does, from shapes alone: on the meta device, without its data.

    The interval is the one between refreshes after the first, dense ones.

    Args:
        config: The run's settings.
        processes: How many share the samples of a step.

    Raises:
        ConfigError: The run's optimizer keeps no curvature.
    """
    from ...planning.report import plan  # this waits for torch, which --help does not need

    model, inputs, options = _on_paper(config, processes)
    return plan(model, inputs, **options)


def forecast_run(
    config: RunConfig,
    processes: int,
    ranks: Sequence[int],
    network: dict[str, Any],
    flops: float,
    seconds: float | None = None,
    step_flops: float | None = None,
) -> list[Forecast]:
    """Foretell a run's step under every strategy, from shapes alone.

    Args:
        config: The run's settings; the strategy it names is left out.
        processes: How many share the samples of a step: each rank has as many as one of them.
        ranks: Numbers of ranks.
        network: Arguments of ``seng.planning.network.Network``.
        flops: Operations a second of a rank.
        seconds: Of a rank's step without curvature; None: from operations.
        step_flops: Operations a second of preconditioning; None: ``flops``.
    """
    from ...planning.forecast import forecasts
    from ...planning.network import Network

    model, inputs, options = _on_paper(config, processes)
    options |= {"distributed": "auto", "reweight": False}
    return forecasts(model, inputs, ranks, Network(**network), flops, seconds, step_flops, **options)


def worlds(most: int) -> list[int]:
    """Return 1, 2, 4 and so on, and the largest."""
    return sorted({*(2**k for k in range(most.bit_length())), most})


def show_forecasts(
    found: Sequence[Forecast], config: RunConfig, processes: int, taken: dict[str, Any], as_json: bool
) -> None:
    """Print forecasts, and what they take a rank and its network to do, as a table or as JSON.

    Args:
        found: Of each number of ranks.
        config: The run's settings.
        processes: How many share the samples of a step.
        taken: The rate, whether it is assumed, the bandwidth and the latency.
        as_json: JSON in place of a table with a line for each number of ranks.
    """
    share = math.ceil(config.batch_size / processes)
    if as_json:
        rows = [vars(row) for row in found]
        head = {"recipe": config.recipe, "samples_a_rank": share, "taken": taken}
        print(json.dumps(head | {"forecasts": rows}, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console = console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=UNBOUNDED)
    console.print(f"{config.recipe}, {share} samples a rank: ms a step; MiB received a step; MiB held", markup=False)
    names = list(dict.fromkeys(row.strategy for row in found))
    table = Table("ranks", *names, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for world in dict.fromkeys(row.ranks for row in found):
        table.add_row(f"{world:,}", *(_told(row) for row in found if row.ranks == world))
    console.print(table, markup=False)
    console.print(_taken(taken), markup=False)


def _taken(taken: dict[str, Any]) -> str:
    network = f"{taken['bandwidth_gb']:g} GB/s and {taken['latency_us']:g} us a message (--bandwidth, --latency)"
    if not taken["rate_assumed"]:
        return f"at {taken['rate_gflops']:g} GFLOP/s a rank, {network}"
    return f"ASSUMED {taken['rate_gflops']:g} GFLOP/s a rank, a CPU core's: give yours with --rate; {network}"


def _told(row: Forecast) -> str:
    milliseconds = f"{row.seconds * 1e3:,.1f}"
    received = (row.step_bytes + row.refresh_bytes / row.interval) / 2**20
    return milliseconds if row.strategy == "plain" else f"{milliseconds}; {received:,.1f}; {row.held / 2**20:,.0f}"


def _on_paper(config: RunConfig, processes: int) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return a run's model and one process's batch on the meta device, and its options."""
    import torch

    from ..train.data import signature
    from ..train.models import build_model
    from ..train.optimizers import seng_options

    seng = config.optimizer.seng
    if seng is None:
        raise ConfigError(
            "seng plan", "the optimizer keeps no curvature", expected="seng", got=config.optimizer.name,
            fix="Leave --optimizer out",
        )  # fmt: skip
    data = signature(config.data)
    with torch.device("meta"):
        model = build_model(config.model, data)
    sample = data.inputs(1)
    samples = math.ceil(config.batch_size / processes)
    inputs = torch.empty(samples, *sample.shape[1:], dtype=sample.dtype, device="meta")
    return model, inputs, seng_options(replace(seng, refresh_always_until=0), steps_per_epoch=1)


def show(planned: Plan, config: RunConfig, processes: int, intervals: tuple[int, ...]) -> None:
    """Print a plan as a table with its totals."""
    from ...planning.report import COLUMNS

    console = Console(highlight=False, soft_wrap=True)
    console = console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=UNBOUNDED)
    seng = config.optimizer.seng or SengConfig()
    shared = f" over {processes} processes" if processes > 1 else ""
    dense = f" and at the first {seng.refresh_always_until}" if seng.refresh_always_until else ""
    head = f"{config.recipe}, batches of {config.batch_size}{shared}, refreshed every {planned.interval} steps{dense}"
    console.print(head, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        right = name in ("parameters", "MiB", "refresh", "apply")
        table.add_column(name, justify="right" if right else "left", no_wrap=right or name == "name")
    for cells in planned.cells():
        table.add_row(*cells)
    console.print(table, markup=False)
    for line in (*planned.remarks(), *planned.totals(intervals), LEGEND):
        console.print(line, markup=False)


def _intervals(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = (0,)
    if min(steps) < 1:
        raise ConfigError(
            "seng plan", "bad --intervals", expected="whole numbers above 0 with commas between", got=text,
            fix="Write --intervals 1,10,100, say",
        )  # fmt: skip
    return steps
