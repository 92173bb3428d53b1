"""Strategies over torch.distributed ranks; adding one is a line in the table of ``strategies``."""

from __future__ import annotations

from .base import Batch, Strategy, Updates
from .communicator import Communicator, ranks_present, running, several_ranks
from .local import Local
from .owners import Global, Sharded
from .plan import RATES, Load, Plan, cheapest
from .strategies import STRATEGIES, Auto, require_strategy, strategy_for, strategy_so_far

__all__ = [
    "RATES",
    "STRATEGIES",
    "Auto",
    "Batch",
    "Communicator",
    "Global",
    "Load",
    "Local",
    "Plan",
    "Sharded",
    "Strategy",
    "Updates",
    "cheapest",
    "ranks_present",
    "require_strategy",
    "running",
    "several_ranks",
    "strategy_for",
    "strategy_so_far",
]
