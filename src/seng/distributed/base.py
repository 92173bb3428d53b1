"""What a strategy does between the stages; this one does nothing, for one process."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Strategy:
    """One process: every rank keeps to itself.

    Laws every subclass obeys: ``agree`` returns the same answer on all ranks; after ``share_updates`` all ranks
    hold the same directions. Both are collective calls.
    """

    def agree(self, ok: Tensor) -> bool:
        """Return whether ``ok`` (0-d bool) holds on every rank."""
        return bool(ok)

    def share_updates(self, updates: Sequence[Tensor]) -> None:
        """Combine the ranks' directions in place."""
