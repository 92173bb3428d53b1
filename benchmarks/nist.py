"""Correct digits of NIST's certified nonlinear regressions, from both starts, by the defaults and a larger damping.

python benchmarks/nist.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from environment import save

from seng.apps.science.nist import MODELS, regression
from seng.func import NaturalGradient

STEPS = 1000
DAMPINGS = (0.1, 1.0)  # the default, and ten times as much


def measure(name: str, start: int, damping: float) -> dict[str, Any]:
    """Take steps until one has converged."""
    data = regression(name)
    b = data.starts[start].clone()
    optimizer = NaturalGradient(b, data.residual, damping=damping)
    steps = next((k for k in range(1, STEPS + 1) if optimizer.step((data.x, data.y)).converged), STEPS)
    return {"problem": name, "start": start + 1, "damping": damping, "digits": data.digits(b), "steps": steps}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    cases = [(name, start, damping) for name in MODELS for start in (0, 1) for damping in DAMPINGS]
    save("nist", {"runs": [measure(*case) for case in cases]})


if __name__ == "__main__":
    main()
