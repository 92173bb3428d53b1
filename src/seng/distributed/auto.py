"""The strategy "auto": the cheapest by bytes, operations and memory, chosen at the first refresh."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Strategy
from .local import Local
from .ranks import Ranks
from .sharded import Sharded
from .whole import Global


class Auto(Ranks):
    """Agrees on steps until the first refresh knows the layers' sizes."""

    name = "auto"

    def candidates(self) -> Sequence[Strategy]:
        found = [kind(self.wire_dtype, self.wire) for kind in (Local, Sharded, Global)]
        for strategy in found:
            strategy.device, strategy.given_rates = self.device, self.given_rates
        return found
