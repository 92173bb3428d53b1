"""``seng theory``: claims of the theory as experiments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...errors import choose
from .options import AsJson

EXAMPLES = (
    "seng theory ntk --out runs/ntk",
    "seng theory stationarity --out runs/stationarity",
    "seng theory sketches --out runs/sketches --quick --json",
)
QUICK: dict[str, dict[str, Any]] = {
    "ntk": {"widths": (128, 512), "lengths": (1.0, 0.01), "angles": (1.0,), "ranks": (8,), "n": 12},
    "stationarity": {"steps": 200, "seeds": 2},
    "sketches": {"sizes": (64, 256), "p": 512, "draws": 3},
    "solvers": {"sizes": (16, 64), "n": 128, "p": 160, "draws": 3},
}


def theory_command(
    study: Annotated[str, typer.Argument(help="ntk, stationarity, sketches or solvers.")],
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the picture.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, in seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study of the theory.

    ntk: wide networks' residuals contract at a rate that no condition number slows. stationarity: gradients of a noisy
    problem go to zero at the predicted order. sketches, solvers: errors of directions beside their bound, with sketches
    of parameters and of samples. Leaves STUDY.json and STUDY.png in --out.
    """
    import torch  # this waits for torch, which --help does not need

    from .. import theory
    from ..theory.pictures import PICTURES

    studies: dict[str, Callable[..., dict[str, Any]]] = {
        "ntk": theory.ntk_study,
        "stationarity": theory.stationarity_study,
        "sketches": theory.sketch_study,
        "solvers": theory.solver_study,
    }
    run = choose(studies, study, call="seng theory", option="study")
    torch.set_num_threads(1)
    found = run(seed=seed, **(QUICK[study] if quick else {}))
    out.mkdir(parents=True, exist_ok=True)
    numbers, picture = out / f"{study}.json", out / f"{study}.png"
    numbers.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    PICTURES[study](found, picture)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in _said(study, found):
        console.print(line, markup=False)
    console.print(f"numbers: {numbers}", markup=False)
    console.print(f"picture: {picture}", markup=False)


def _said(study: str, found: dict[str, Any]) -> list[str]:
    if study == "ntk":
        return [
            f"width {row['width']}, condition {row['condition']:.1e}"
            + ("" if row["rank"] is None else f", sketch of {row['rank']} rows")
            + f": contraction {row['natural']:.4f} (predicted {row['predicted']:.4f})"
            + ("" if row["descent"] is None else f", gradient descent {row['descent']:.4f}")
            for part in ("widths", "lengths", "angles", "ranks")
            for row in found[part]
        ]
    if study == "stationarity":
        order = f"order {found['order']:.2f}, predicted {found['predicted_order']:.2f} or less"
        return [order, f"at most {found['largest_ratio']:.3f} of the bound"]
    return [
        f"{row['sketch']}, size {row['size']}: error {row['error']:.3g}, bound "
        + ("none" if row["bound"] is None else f"{row['bound']:.3g}")
        for row in found["rows"]
    ]
