"""Strategies over torch.distributed ranks. One file a strategy; adding one is a line in the table."""

from __future__ import annotations

from torch import distributed as dist

from ..errors import choose
from .base import Strategy
from .local import Local

__all__ = ["STRATEGIES", "Local", "Strategy", "automatic", "strategy_for"]

STRATEGIES: dict[str, type[Strategy]] = {"none": Strategy, "local": Local}


def strategy_for(name: object, call: str) -> Strategy:
    """Return the named strategy, or the one that "auto" stands for.

    Raises:
        OptionError: No strategy has that name.
    """
    table = {"auto": STRATEGIES[automatic()], **STRATEGIES}
    return choose(table, name, call=call, option="distributed")()


def automatic() -> str:
    """Return the strategy that "auto" stands for: "local" where several ranks run, else "none"."""
    running = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return "local" if running else "none"
