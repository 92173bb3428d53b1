"""Strategies over torch.distributed ranks. One file a strategy; adding one is a line in the table."""

from __future__ import annotations

from torch import distributed as dist

from .base import Strategy
from .local import Local

__all__ = ["STRATEGIES", "Local", "Strategy", "automatic"]

STRATEGIES: dict[str, type[Strategy]] = {"none": Strategy, "local": Local}


def automatic() -> str:
    """Return the strategy that "auto" stands for: "local" where several ranks run, else "none"."""
    running = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return "local" if running else "none"
