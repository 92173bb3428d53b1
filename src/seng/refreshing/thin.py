"""Corrections U z of several ranks, exchanged as thin factors: U at a refresh, only z at a step. Source: PAPER 5."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor

from ..blocks import Layout
from ..distributed import Strategy
from ..gradients import BlockGradients
from ..per_sample import PerSampleGradients

Carriers = tuple[PerSampleGradients | None, ...]  # by rank: U as far as U z needs it; None where a rank has no samples


class ThinCorrections:
    """The mean over ranks of multiplier_m (g + U_m z_m), for blocks whose factors all ranks hold.

    Args:
        layout: The model's blocks.
    """

    def __init__(self, layout: Layout):
        self.carriers: dict[str, Carriers] = {}
        self._next: dict[str, Carriers] = {}
        self._fresh: set[str] = set()  # blocks whose factors the refresh under way will hand on
        self._layout = layout
        self._said: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a block's corrections travel as thin factors in the step under way."""
        return name in self.carriers or name in self._fresh

    def prepare(self, refreshed: Iterable[str], thin: Container[str], fresh: bool) -> None:
        """Begin a refresh; the same on all ranks.

        Args:
            refreshed: The blocks that get new curvature.
            thin: Those whose thin factors travel.
            fresh: Whether the step under way is to use the new ones, not those held before.
        """
        self._next = {name: self.carriers.get(name, ()) if name in thin else () for name in refreshed}
        if fresh:
            self._fresh = {name for name in refreshed if name in thin}
            self.carriers = {name: own for name, own in self.carriers.items() if name not in self._next}

    def take(self, name: str, factors: Carriers) -> Carriers:
        """Keep the factors of a block's refresh; those of ranks without samples stay what they were. Returns them."""
        before = self._next[name] or (None,) * len(factors)
        self._next[name] = tuple(new or old for new, old in zip(factors, before, strict=True))
        if name in self._fresh:
            self.carriers[name] = self._next[name]
        return self._next[name]

    def adopt(self) -> None:
        """Use the factors of the last refresh from now on."""
        self.carriers = {name: own for name, own in (self.carriers | self._next).items() if own}
        self._next, self._fresh = {}, set()

    def say(self, name: str, z: Tensor, multiplier: Tensor) -> None:
        """Note this rank's part of a step."""
        self._said[name] = torch.cat([multiplier[None], z * multiplier])

    def finish(self, grads: Mapping[str, BlockGradients], holders: Mapping[str, int], strategy: Strategy) -> None:
        """Exchange the coefficients and leave the mean directions in ``.grad``. A collective call."""
        names = [name for name in self.carriers if name in grads]
        for dtype in dict.fromkeys(grads[name].values[0].dtype for name in names):
            same = [name for name in names if grads[name].values[0].dtype == dtype]
            lengths = [1 + max(c.n for c in self.carriers[name] if c is not None) for name in same]
            own = torch.zeros(sum(lengths), dtype=dtype, device=strategy.device)
            for part, name in zip(own.split(lengths), same, strict=True):
                said = self._said.pop(name, None)
                if said is not None:
                    part[: len(said)] = said
            everyones = strategy.tables(own, "coefficients").split(lengths, 1)
            for part, name in zip(everyones, same, strict=True):
                if holders.get(name, 0):
                    self._write(name, grads[name], part / holders[name])
        self._said.clear()

    def _write(self, name: str, own: BlockGradients, parts: Tensor) -> None:
        for x in own.values:
            x.mul_(parts[:, 0].sum())
        for part, carrier in zip(parts, self.carriers[name], strict=True):
            if carrier is not None:
                carrier.add_rmv_(own.values, part[1 : 1 + carrier.n].contiguous())
        own.write_back()
