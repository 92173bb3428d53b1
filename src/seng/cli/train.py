"""``seng train``: train a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..recipes import build_recipe
from ..train.config import RunConfig
from ..train.errors import CheckpointError
from ..train.folder import RunFolder, create_run, open_run
from ..train.metrics import read_metrics
from ..train.settings import override, settings
from .options import Assignments, assignment, complete_optimizer, complete_recipe

EXAMPLES = (
    "seng train digits --out runs/digits",
    "seng train fashion-resnet --out runs/fashion --optimizer sgd --epochs 5",
    "seng train fashion-resnet --out runs/fashion --damping 0.3 --set optimizer.seng.trust=none",
    "seng train --out runs/fashion --resume",
)


def train_command(
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
            help="seng, sgd or adamw.  [default: seng]", show_default=False, autocompletion=complete_optimizer
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
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = None,
    assignments: Assignments = None,
) -> None:
    """Train a recipe on its data.

    Leaves settings, metrics, a checkpoint after each epoch, and a picture of the curves in --out.
    """
    flags = {
        "epochs": epochs,
        "optimizer.lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "optimizer.seng.damping": damping,
        "optimizer.seng.power": power,
        "optimizer.seng.refresh_every": refresh_every,
        "optimizer.seng.base": base,
        "data.data_dir": data_dir,
        "device": device,
    }
    changes = {name: value for name, value in flags.items() if value is not None}
    changes |= dict(assignment(text, "seng train") for text in assignments or ())
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if resume:
        folder, config = open_run(out)
        _check_same(config, recipe, optimizer, changes)
    else:
        config = override(build_recipe(recipe or "digits", optimizer or "seng"), changes)
        folder = None
    _run(config, folder, out, overwrite, stop_after)


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


def _run(config: RunConfig, folder: RunFolder | None, out: Path, overwrite: bool, stop_after: int | None) -> None:
    """Train with a progress bar, print the result and draw the curves."""
    from ..train.curves import draw_curves  # these take seconds to import: --help needs neither
    from ..train.loop import train
    from ..train.progress import ProgressBar
    from ..train.session import build_session

    console = Console(highlight=False, soft_wrap=True)
    session = build_session(config)
    resume = folder is not None
    folder = folder or create_run(out, config, overwrite=overwrite)
    title = f"{config.recipe}, {config.optimizer.name}, seed {config.seed}"
    console.print(f"{title}: {config.epochs} epochs of {session.steps_per_epoch} steps on {session.device}")
    with ProgressBar(config.epochs, len(session.data.train), console) as bar:
        try:
            result = train(session, folder, watchers=[bar], resume=resume, stop_after=stop_after)
        except KeyboardInterrupt:
            console.print(f"interrupted; whole epochs are kept: seng train --out {out} --resume goes on")
            raise typer.Exit(130) from None
    draw_curves(read_metrics(folder.metrics), folder.curves, title)
    console.print(f"test accuracy {result.accuracy:.2%}, test loss {result.loss:.4f}")
    console.print(f"curves: {folder.curves}")
