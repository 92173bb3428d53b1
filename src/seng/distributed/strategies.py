"""The table of strategies, what an option names, and "auto", which chooses at the first refresh."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..distribution import Distributed
from ..errors import OptionError, choose
from .base import Strategy
from .communicator import running, several_ranks
from .local import Local
from .owners import Global, Sharded
from .ranks import Ranks

STRATEGIES: dict[str, type[Strategy]] = {"none": Strategy, "local": Local, "global": Global, "sharded": Sharded}


class Auto(Ranks):
    """The cheapest by bytes, operations and memory; agrees on steps until a refresh knows the layers' sizes."""

    name = "auto"

    def candidates(self) -> Sequence[Strategy]:
        found = [kind(self.wire_dtype, self.wire) for kind in (Local, Sharded, Global)]
        for strategy in found:
            strategy.device, strategy.given_rates = self.device, self.given_rates
        return found


def strategy_for(asked: Distributed, call: str, cut_among: int = 1) -> Strategy:
    """Return the strategy asked for, or "auto": over several ranks the cheapest, else "none".

    It stands for the ranks that there are now; ``Strategy.current`` tells whether they still are the same.

    Args:
        asked: What the option says.
        call: What errors name.
        cut_among: Number of ranks that the model's parameters are cut among.

    Raises:
        OptionError: No strategy has that name, torch.distributed does not run, or ranks that share a model are to keep
            to themselves.
    """
    name, automatic = asked.name, Auto if several_ranks() else Strategy
    kind = choose({"auto": automatic, **STRATEGIES}, name, call=call, option="distributed")
    if kind is not Strategy and not running():
        raise OptionError(
            call, f"distributed={name!r} needs ranks", expected="a process group of torch.distributed", got=None,
            fix="Call torch.distributed.init_process_group first, or leave distributed at 'auto'",
        )  # fmt: skip
    if kind is Strategy and cut_among > 1:
        raise OptionError(
            call, f"distributed={name!r} cannot serve a model sharded over {cut_among} ranks",
            expected="a strategy of several ranks", got=name, fix="Leave distributed at 'auto'",
        )  # fmt: skip
    return kind(None if asked.wire_dtype is None else getattr(torch, asked.wire_dtype))


def strategy_so_far(asked: Distributed, call: str, cut_among: int = 1) -> Strategy:
    """Return the same, or "none" in place of a strategy whose process group may still come."""
    require_strategy(asked, call)
    now = asked if running() or asked.name == "auto" else Distributed("none", asked.wire_dtype)
    return strategy_for(now, call, cut_among)


def require_strategy(asked: Distributed, call: str) -> None:
    """Raise OptionError where no strategy has that name."""
    choose({"auto": Auto, **STRATEGIES}, asked.name, call=call, option="distributed")
