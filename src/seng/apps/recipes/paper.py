"""What the paper's experiments share."""

from __future__ import annotations

from ..train.config import SengConfig

PAPER = SengConfig(
    damping_mode="absolute",
    scale="natural",
    power=1.0,
    curvature_batch="current",
    trust=None,
    sketch="uniform",
    sketch_size=256,
    rank=16,
    explicit_limit=700_000,
)
"""The options of ``seng.SENG(preset="paper")`` with the paper's sketch: 256 rows a side, rank 16."""
