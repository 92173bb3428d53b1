"""Runs the studies of ``seng theory`` and draws the pictures of docs/theory.md.

python benchmarks/theory.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from environment import save

from seng.apps.theory import ntk_study, sketch_study, solver_study, stationarity_study
from seng.apps.theory.pictures import PICTURES

ASSETS = Path(__file__).parent.parent / "docs" / "assets"


def main() -> None:
    torch.set_num_threads(1)
    found = {
        "ntk": ntk_study(),
        "stationarity": stationarity_study(),
        "sketches": sketch_study(),
        "solvers": solver_study(),
    }
    save("theory", found)
    for name, draw in PICTURES.items():
        draw(found[name], ASSETS / f"theory-{name}.png")


if __name__ == "__main__":
    main()
