"""What ranks do together. Each holds the rows of its own samples; n counts the rows of all.

One file for all of it, so that everything else reads as if there were one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ..distributed import Communicator, running
from ..errors import OptionError, choose


class Ranks(Communicator):
    """One process, or several, each with samples of its own: the batch is all of them together.

    Args:
        rank: This process.
        world: Number of processes.
        dealt: Whether every rank is given the same samples and works on its share of them.
        **arguments: As for ``Communicator``.
    """

    def __init__(self, rank: int = 0, world: int = 1, *, dealt: bool = False, **arguments: Any):
        super().__init__(rank, world, **arguments)
        self.dealt = dealt

    def share(self, count: int) -> slice:
        """Return which of the samples given to this rank it works on."""
        if not self.dealt:
            return slice(0, count)
        return slice(*(count * k // self.world for k in (self.rank, self.rank + 1)))

    def tiles(
        self, bounds: list[tuple[int, int]], make: Callable[[int], Tensor], like: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row among all, rows) of each tile of each rank, rank by rank.

        Args:
            bounds: First and last row of each of this rank's tiles, among its own rows.
            make: Computes one of them.
            like: A tensor [p] of the tiles' dtype and device.
        """
        base = 0
        for source, theirs in enumerate(self.gather(bounds)):
            for k, (start, stop) in enumerate(theirs):
                tile = make(k) if source == self.rank else like.new_empty(stop - start, len(like))
                yield base + start, self.broadcast(tile, source)
            base += theirs[-1][1] if theirs else 0


RANKS: dict[str, Callable[..., Ranks]] = {
    "none": Ranks,
    "joined": Ranks.among_all,
    "dealt": partial(Ranks.among_all, dealt=True),
}


def ranks_for(name: str, call: str) -> Ranks:
    """Return the named way of working together, or the one that "auto" stands for.

    Raises:
        OptionError: There is no such way, or no process group.
    """
    chosen = choose({"auto": Ranks.among_all, **RANKS}, name, call=call, option="distributed")
    if name in ("joined", "dealt") and not running():
        raise OptionError(
            call, "no process group", expected="torch.distributed.init_process_group() before", got=name,
            fix="Start one, or pass distributed='none'",
        )  # fmt: skip
    return chosen(call=call)
