"""What every rank knows of all curvature, wherever it is held: which blocks it reaches, and its mean eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..config import Options
from ..curvature import Curvature, damping_at
from ..distributed import Strategy

NONE, UNUSABLE = float("nan"), -1.0  # in place of a mean eigenvalue: no curvature; curvature that cannot be divided by


class Reach:
    """A table of mean eigenvalues by block, a row for each rank with curvature of its own, exchanged once a refresh.

    Args:
        names: Of all blocks.
    """

    def __init__(self, names: Sequence[str]):
        self._names = list(names)
        self._table = torch.full((1, len(self._names)), NONE, dtype=torch.float64)
        self._own: dict[str, tuple[Tensor, bool]] = {}
        self.known = True  # False where this rank alone knows its part: a state was loaded, or the ranks are others
        self.spent = False  # whether what was held has served its one use

    def note(self, name: str, curvature: Curvature) -> None:
        """Take note of a block's new curvature, to be told by ``share``."""
        self._own[name] = (curvature.mean, curvature.factor is not None)

    def forget(self, name: str) -> None:
        """Take note that this rank has let go of a block's curvature."""
        self._own.pop(name, None)

    def share(self, strategy: Strategy) -> None:
        """Tell all ranks of this one's curvature. A collective call."""
        means = torch.full((len(self._names),), NONE, dtype=torch.float64)
        places = [k for k, name in enumerate(self._names) if name in self._own]
        if places:
            found, usable = zip(*(self._own[self._names[k]] for k in places), strict=True)
            own = torch.stack([mean.to(found[0].device) for mean in found]).double().cpu()
            means[places] = torch.where(torch.tensor(usable), own, UNUSABLE)
        table = strategy.tables(means, "means")
        if strategy.pooled:  # each block's curvature is one, whoever holds it
            best = table.nan_to_num(-torch.inf).amax(0, keepdim=True)
            table = best.masked_fill(best.isneginf(), NONE)
        self._table = table
        self.known, self.spent = True, False

    def restore(self, curvature: Mapping[str, Curvature]) -> None:
        """Take up curvature that was loaded, to be told by ``share``."""
        self._own = {name: (own.mean, own.factor is not None) for name, own in curvature.items()}
        self.known = False

    @property
    def begun(self) -> bool:
        """Whether any rank holds any curvature."""
        return not bool(self._table.isnan().all())

    def begun_on(self, rank: int) -> bool:
        """Whether one rank does, or in a pooled strategy any."""
        return not bool(self._table[min(rank, len(self._table) - 1)].isnan().all())

    def held(self) -> set[str]:
        """Return the blocks of which some rank holds curvature."""
        return {name for name, none in zip(self._names, self._table.isnan().all(0).tolist(), strict=True) if not none}

    def holders(self) -> dict[str, int]:
        """Return how many curvatures that can be used there are, by block."""
        counts = (self._table >= 0).sum(0).tolist()
        return {} if self.spent else dict(zip(self._names, counts, strict=True))

    def pace(self, options: Options, step: int, norm: Tensor) -> Tensor | None:
        """Return what scales gradients that no curvature reaches: the mean of each row's pace.

        Under a trust cap no gradient is amplified, and together they are no longer than a block's direction may be,
        their F being 0; of losses that are sums no bound is known.

        Args:
            options: Those in force.
            step: The step.
            norm: Of all these gradients together, 0-d.
        """
        paces = []
        for means in self._table:
            dampings = damping_at(options, step, means[means >= 0])
            dampings = dampings[dampings > 0]
            if len(dampings):
                mean = float(dampings.mean())
                pace = options.estimator.passthrough_scale(mean, options.power)
                paces.append(_within_trust(pace, mean, options, norm))
        return torch.stack(paces).mean() if paces else None


def _within_trust(pace: float, damping: float, options: Options, norm: Tensor) -> Tensor:
    if options.trust is None:
        return torch.full_like(norm, pace)
    if not bounds_passing(options):
        return torch.full_like(norm, min(1.0, pace))
    trust = 1.0 if options.trust == "auto" else options.trust
    return (trust * damping ** (0.5 - options.power) / norm).clamp(max=min(1.0, pace))


def bounds_passing(options: Options) -> bool:
    """Return whether the trust cap bounds gradients that no curvature reaches, so that their norm has to be known."""
    return options.natural and options.trust is not None and options.loss_reduction == "mean"
