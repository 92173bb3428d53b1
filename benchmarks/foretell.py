"""ResNet-50 on 4 to 1,024 GPUs, foretold: every strategy, 64 pictures a GPU, the settings of the paper.

    python benchmarks/foretell.py

Nothing is measured here. What is assumed: a step without curvature takes as long as one of the paper's run (273 minutes
on 4 V100 for 41 epochs of 1,281,167 pictures in batches of 256, its curvature included), curvature's work goes at half
of a V100's 15.7 Tflop/s, and each GPU has 25 GB/s and 10 microseconds a message to the others.
"""

from __future__ import annotations

from typing import Any

from environment import save

from seng.apps.cli.plan import forecast_run
from seng.apps.recipes import build_recipe

RANKS = (4, 16, 64, 256, 1024)
MINUTES, EPOCHS, PICTURES, BATCH = 273, 41, 1_281_167, 256
RATE = 15.7e12 / 2
NETWORK = {"latency": 10e-6, "bandwidth": 25e9, "shape": "ring"}


def main() -> None:
    """Write results/resnet50_ranks.json."""
    config = build_recipe("imagenet-resnet50")
    seconds = MINUTES * 60 / (EPOCHS * PICTURES / BATCH)
    rows = [vars(row) for row in forecast_run(config, 4, RANKS, NETWORK, RATE, seconds)]
    assumed: dict[str, Any] = {"samples_a_rank": BATCH // 4, "step_seconds": seconds, "flops": RATE, "network": NETWORK}
    save("resnet50_ranks", {"assumed": assumed, "forecasts": rows})


if __name__ == "__main__":
    main()
