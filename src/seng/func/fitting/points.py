"""Where the points of a fit come from: a batch that stays, or a function that draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ...checks import require
from ...errors import BatchError
from ...sketch import generator_for
from ..problem import Problem
from ..terms import Term, values_of
from ..trees import count_samples
from .plan import CALL

HELD_OUT = 1000  # points that are drawn to judge by
CANDIDATES = 4  # points that are drawn for one that is kept, where residuals choose


@dataclass(frozen=True)
class Source:
    """Points as the user gave them.

    Args:
        given: A batch, or a function (number of points, torch.Generator) -> batch.
        seed: Seed of every draw.
    """

    given: Any
    seed: int

    @property
    def draws(self) -> bool:
        """Whether there are other points."""
        return callable(self.given)

    def draw(self, size: int, number: int, name: str = "points") -> Any:
        """Return the points of one draw; the batch where there is no function."""
        return self.given(size, generator_for(self.seed, number, name)) if self.draws else self.given

    def held_out(self, asked: Any) -> Any:
        """Return the held-out points: the batch that was given, a number of points that are drawn, or None.

        Raises:
            OptionError: A number is asked for where points are a batch, or is out of range.
        """
        if asked is None and not self.draws:
            return None
        count = HELD_OUT if asked is None else asked
        if not isinstance(count, int):
            return count
        good = self.draws and not isinstance(count, bool) and count >= 1
        require(CALL, "held_out", asked, good, "a batch, None, or an integer >= 1 where points is a function")
        return self.draw(count, 0, "held-out points")

    def choose(self, number: int, candidates: Problem) -> Any:
        """Return points chosen among candidates by the size of their residuals, term by term.

        A point is chosen with a probability in proportion to 1 + |f_i| / mean_j |f_j|, without replacement.

        Args:
            number: Number of the draw.
            candidates: The loss on ``CANDIDATES`` times as many points as are wanted.

        Cost: a forward pass over the candidates.
        Source: Wu et al., "A comprehensive study of non-adaptive and residual-based adaptive sampling" (2023).
        """
        generator, leaves = generator_for(self.seed, number, "choice"), candidates.params.values()
        chosen = {}
        for term in candidates.terms:
            values = values_of([term], leaves, candidates.most)[0]
            chosen[term.name] = _choose(term, values.reshape(term.count, -1).norm(dim=1), generator)
        return chosen


def _choose(term: Term, sizes: Tensor, generator: torch.Generator) -> Any:
    weights = (1 + sizes / sizes.mean().clamp(min=torch.finfo(sizes.dtype).tiny)).double().cpu()
    kept = torch.multinomial(weights, max(1, term.count // CANDIDATES), generator=generator).sort().values
    return tree_map(lambda leaf: leaf[kept.to(leaf.device)], term.samples)


def count_points(batch: Any, residual_fn: Any) -> int:
    """Return the number of samples of all terms.

    Raises:
        BatchError: The batch does not fit the terms.
    """
    if not isinstance(residual_fn, Mapping):
        return count_samples(batch, CALL, "residual")
    if not isinstance(batch, Mapping):
        raise BatchError(
            CALL, "points do not fit the terms", expected=f"a dict with the keys {sorted(residual_fn)}",
            got=type(batch).__name__, fix="Give each function its samples",
        )  # fmt: skip
    return sum(count_samples(samples, CALL, name) for name, samples in batch.items())
