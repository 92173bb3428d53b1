"""What ranks do together. Each holds the rows of its own samples; n counts the rows of all.

One file for all of it, so that everything else reads as if there were one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from ..errors import OptionError, choose


class Ranks:
    """One process. All methods are collective calls; all ranks get the same answers.

    Attributes:
        rank: This process.
        world: Number of processes.
    """

    rank = 0
    world = 1

    def share(self, count: int) -> slice:
        """Return which of the samples given to this rank it works on."""
        return slice(0, count)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return x

    def lengths(self, count: int) -> list[int]:
        """Return every rank's count."""
        return [count]

    def join(self, x: Float[Tensor, "m *rest"], lengths: list[int]) -> Float[Tensor, "n *rest"]:
        """Return the rows of all ranks one below the other."""
        return x

    def collect(self, x: Float[Tensor, "m *rest"], lengths: list[int]) -> Float[Tensor, "n *rest"] | None:
        """Return the rows of all ranks on the first one, None elsewhere."""
        return x

    def first(self, x: Tensor) -> Tensor:
        """Return the first rank's values."""
        return x

    def tiles(
        self, bounds: list[tuple[int, int]], make: Callable[[int], Tensor], like: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row among all, rows) of each tile of each rank, rank by rank.

        Args:
            bounds: First and last row of each of this rank's tiles, among its own rows.
            make: Computes one of them.
            like: A tensor [p] of the tiles' dtype and device.
        """
        for k, (start, _) in enumerate(bounds):
            yield start, make(k)


class Joined(Ranks):
    """Ranks of torch.distributed, each with samples of its own: the batch is all of them together."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    def lengths(self, count: int) -> list[int]:
        counts: list[int | None] = [None] * self.world
        dist.all_gather_object(counts, count)
        return [int(c or 0) for c in counts]

    def join(self, x: Tensor, lengths: list[int]) -> Tensor:
        parts = [x.contiguous() if k == self.rank else x.new_empty(m, *x.shape[1:]) for k, m in enumerate(lengths)]
        for source, part in enumerate(parts):
            dist.broadcast(part, source)
        return torch.cat(parts)

    def collect(self, x: Tensor, lengths: list[int]) -> Tensor | None:
        if self.rank:
            dist.send(x.contiguous(), 0)
            return None
        whole = x.new_empty(sum(lengths), *x.shape[1:])
        whole[: lengths[0]] = x
        for source, part in enumerate(whole.split(lengths)[1:], 1):
            dist.recv(part, source)
        return whole

    def first(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.broadcast(x, 0)
        return x

    def tiles(
        self, bounds: list[tuple[int, int]], make: Callable[[int], Tensor], like: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        everyone: list[list[tuple[int, int]] | None] = [None] * self.world
        dist.all_gather_object(everyone, bounds)
        base = 0
        for source, theirs in enumerate(everyone):
            for k, (start, stop) in enumerate(theirs or []):
                mine = source == self.rank
                tile = make(k).contiguous() if mine else like.new_empty(stop - start, len(like))
                dist.broadcast(tile, source)
                yield base + start, tile
            base += theirs[-1][1] if theirs else 0


class Dealt(Joined):
    """The same, but every rank is given the same samples and works on its share of them."""

    def share(self, count: int) -> slice:
        edges = [count * k // self.world for k in (self.rank, self.rank + 1)]
        return slice(*edges)


RANKS: dict[str, type[Ranks]] = {"none": Ranks, "joined": Joined, "dealt": Dealt}


def ranks_for(name: str, call: str) -> Ranks:
    """Return the named way of working together, or the one that "auto" stands for.

    Raises:
        OptionError: There is no such way, or no process group.
    """
    running = dist.is_available() and dist.is_initialized()
    auto = RANKS["joined" if running and dist.get_world_size() > 1 else "none"]
    chosen = choose({"auto": auto, **RANKS}, name, call=call, option="distributed")
    if issubclass(chosen, Joined) and not running:
        raise OptionError(
            call, "no process group", expected="torch.distributed.init_process_group() before", got=name,
            fix="Start one, or pass distributed='none'",
        )  # fmt: skip
    return chosen()
