"""``seng train``: train a recipe."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..recipes import build_recipe
from ..train.config import RunConfig
from ..train.errors import CheckpointError
from ..train.folder import RunFolder, create_run, locked, open_run
from ..train.metrics import EndRecord, EpochRecord, Record, Watcher, read_records
from ..train.settings import override, settings
from .options import AsJson, Assignments, assignment, complete_optimizer, complete_recipe

if TYPE_CHECKING:
    from ..train.meters import Evaluation
    from ..train.ranks import Ranks
    from ..train.session import Session

EXAMPLES = (
    "seng train digits --out runs/digits",
    "seng train fashion-resnet --out runs/fashion --optimizer sgd --epochs 5",
    "seng train fashion-resnet --out runs/fashion --damping 0.3 --set optimizer.seng.trust=none",
    "seng train --out runs/fashion --resume",
    "seng train digits --out runs/quick --until test_accuracy=0.97 --json",
    "seng train cifar10-resnet18 --out runs/cifar --precision bf16 --compile --workers 8 --data-dir data",
)
SETTINGS = {
    "epochs": "epochs",
    "lr": "optimizer.lr",
    "batch_size": "batch_size",
    "seed": "seed",
    "damping": "optimizer.seng.damping",
    "power": "optimizer.seng.power",
    "refresh_every": "optimizer.seng.refresh_every",
    "base": "optimizer.seng.base",
    "data_dir": "data.data_dir",
    "workers": "data.workers",
    "device": "device",
    "precision": "precision",
    "accumulate": "accumulate",
    "clip": "clip",
    "until": "until",
    "checkpoint_every": "checkpoint_every",
    "keep": "keep",
    "compiled": "compile",
    "deterministic": "deterministic",
}  # what the options of the command line set


def train_command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for settings, metrics, checkpoint and curves.")],
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="What to train; `seng recipes` lists them.  [default: digits]", autocompletion=complete_recipe
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop when so many epochs are done; --resume goes on.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="seng, sgd, adamw, muon, soap, shampoo, kron, schedule-free or kfac.  [default: seng]",
            show_default=False,
            autocompletion=complete_optimizer,
        ),
    ] = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Passes over the data.")] = None,
    lr: Annotated[str | None, typer.Option(metavar="X", help="Learning rate at the start.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="N", help="Samples a step.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of all random draws.")] = None,
    damping: Annotated[str | None, typer.Option(metavar="X", help="SENG's damping, > 0.")] = None,
    power: Annotated[str | None, typer.Option(metavar="X", help="SENG's exponent, in (0, 1].")] = None,
    refresh_every: Annotated[
        str | None, typer.Option(metavar="N", help="Steps between refreshes of SENG's curvature.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="NAME", help="Optimizer behind SENG: sgd, adamw or muon.")] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the data; else SENG_DATA, else Debian's.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N", help="Processes that prepare batches ahead; 0: the loop itself.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="NAME", help="float32, bf16 or fp16.")] = None,
    accumulate: Annotated[
        str | None, typer.Option(metavar="N", help="Micro-batches that a step is dealt into.")
    ] = None,
    clip: Annotated[str | None, typer.Option(metavar="X", help="Largest norm of the gradient.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="End early there, as test_accuracy=0.97.")
    ] = None,
    checkpoint_every: Annotated[
        str | None, typer.Option(metavar="N", help="Steps between checkpoints inside an epoch.")
    ] = None,
    keep: Annotated[str | None, typer.Option(metavar="N", help="Checkpoints kept.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile", help="Run the model through torch.compile.")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="The same bits at every run, on a GPU too.")
    ] = None,
    assignments: Assignments = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's files, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe on its data.

    Leaves settings, metrics, checkpoints and a picture of the curves in --out. Ctrl-C or SIGTERM saves and stops; a
    second one stops at once. Several processes: torchrun --nproc-per-node 2 -m seng train ...
    """
    given = {SETTINGS[name]: value for name, value in context.params.items() if name in SETTINGS}
    changes = {name: str(value) for name, value in given.items() if value is not None}
    changes |= dict(assignment(text, "seng train") for text in assignments or ())
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if resume:
        folder, config = open_run(out)
        _check_same(config, recipe, optimizer, changes)
    else:
        config = override(build_recipe(recipe or "digits", optimizer or "seng"), changes)
        folder = None
    _run(config, folder, _Call(out, overwrite, stop_after, tensorboard, as_json))


def _check_same(config: RunConfig, recipe: str | None, optimizer: str | None, changes: dict[str, str]) -> None:
    """Refuse to resume a run with settings other than those it was started with."""
    asked = settings(override(config, changes)) | {
        "recipe": recipe or config.recipe,
        "optimizer.name": optimizer or config.optimizer.name,
    }
    for name, value in settings(config).items():
        if asked[name] != value:
            raise CheckpointError(
                "seng train --resume",
                f"{name} is not what the run was started with",
                expected=repr(value),
                got=asked[name],
                fix="Resume without the option, or start a new run in another --out",
            )


@dataclass(frozen=True)
class _Call:
    """What was asked of this call alone, beside the run's settings."""

    out: Path
    overwrite: bool
    stop_after: int | None
    tensorboard: bool
    as_json: bool


def _run(config: RunConfig, folder: RunFolder | None, call: _Call) -> None:
    """Train with a progress bar, print the result and draw the curves; in the first process of several."""
    from ..train.loop import train  # these take seconds to import: --help does not need them
    from ..train.ranks import joined
    from ..train.session import build_session
    from ..train.signals import Interrupted

    with joined(config.device) as ranks, ExitStack() as stack:
        console = Console(stderr=call.as_json, quiet=not ranks.first, highlight=False, soft_wrap=True)
        session = build_session(config, ranks)
        resume = folder is not None
        folder = folder or _new_folder(config, call, ranks, stack)
        console.print(
            f"{_title(config)}: {config.epochs} epochs of {session.steps_per_epoch} steps on {session.device}"
        )
        watchers = _watchers(session, folder, call, console, stack) if ranks.first else []
        try:
            result = train(session, folder, watchers=watchers, resume=resume, stop_after=call.stop_after)
        except (Interrupted, KeyboardInterrupt) as stop:
            stack.close()
            number = getattr(stop, "number", signal.SIGINT)
            kept = "everything" if isinstance(stop, Interrupted) else "the last checkpoint"
            name = signal.Signals(number).name
            console.print(f"stopped by {name}; {kept} is kept: seng train --out {call.out} --resume goes on")
            raise typer.Exit(128 + number) from None
        stack.close()
        if ranks.first:
            _tell_result(config, folder, result, console, call.as_json)


def _title(config: RunConfig) -> str:
    return f"{config.recipe}, {config.optimizer.name}, seed {config.seed}"


def _new_folder(config: RunConfig, call: _Call, ranks: Ranks, stack: ExitStack) -> RunFolder:
    """Make a run's folder in the first process, and lock it until the run is over."""
    if ranks.first:
        folder = create_run(call.out, config, overwrite=call.overwrite)
        stack.enter_context(locked(folder.path))
    ranks.wait()
    return RunFolder(call.out)


def _watchers(session: Session, folder: RunFolder, call: _Call, console: Console, stack: ExitStack) -> list[Watcher]:
    from ..train.progress import ProgressBar

    watchers: list[Watcher] = []
    if call.tensorboard:
        from ..train.tensorboard import TensorBoardFiles

        watchers.append(stack.enter_context(TensorBoardFiles(folder.tensorboard)))
    bar = ProgressBar(session.config.epochs, len(session.data.train), console)
    return [*watchers, stack.enter_context(bar)]


def _tell_result(config: RunConfig, folder: RunFolder, result: Evaluation, console: Console, as_json: bool) -> None:
    """Print what the last epoch's record says, and draw the curves; the run is over, and nothing here ends it badly."""
    try:
        records = read_records(folder.metrics, lambda reason: _passed_over(folder.metrics, reason, console))
    except OSError as error:
        _passed_over(folder.metrics, str(error), console)
        records = []
    epoch = next((record for record in reversed(records) if isinstance(record, EpochRecord)), None)
    ended = next((record.reason for record in records if isinstance(record, EndRecord)), None)
    if ended not in (None, "epochs") and epoch:
        console.print(f"{ended} was reached in epoch {epoch.epoch}: the run is over")
    accuracy = "" if result.accuracy is None else f"test accuracy {result.accuracy:.2%}, "
    console.print(f"{accuracy}test loss {result.loss:.4f}")
    _draw(records, folder.curves, config, console)
    if as_json:
        names = ("epoch", "step", "seconds", "train_loss")
        tested = {"test_loss": result.loss, "test_accuracy": result.accuracy, "test_accuracy5": result.accuracy5}
        told = {name: getattr(epoch, name, None) for name in names} | tested | {"ended": ended, "out": str(folder.path)}
        print(json.dumps({"recipe": config.recipe, "optimizer": config.optimizer.name, "seed": config.seed} | told))


def _passed_over(path: Path, reason: str, console: Console) -> None:
    console.print(f"{path}: passed over, it is damaged: {reason}", markup=False)


def _draw(records: list[Record], path: Path, config: RunConfig, console: Console) -> None:
    from ..train.curves import draw_curves

    try:
        draw_curves(map(asdict, records), path, _title(config))
    except (OSError, ValueError, ArithmeticError) as error:
        console.print(f"curves: not drawn: {error}", markup=False)
    else:
        console.print(f"curves: {path}")
