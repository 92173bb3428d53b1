"""A refresh of all blocks, from what the layers of this rank captured to curvature on the ranks that hold it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..blocks import Layout
from ..curvature import BlockParts, Curvature, Pool, factor_of, refresh
from ..direction import solve_rows
from ..errors import BatchError, OrderError
from ..solve import FactorisationError
from .census import Census
from .incoming import Incoming, Members, exchange
from .moving import Standing, fit_together
from .reach import Reach
from .sharing import Sharing
from .solutions import refresh_shared
from .thin import ThinCorrections

Span = Callable[[str], AbstractContextManager[Any]]
Count = Callable[[str, str, int], None]  # an event, what to say the first time ("" for nothing), how often


class Refreshes:
    """Makes curvature, and keeps what is held.

    Args:
        layout: The model's blocks.
        sharing: Moves samples between ranks.
        reach: What all ranks know of all curvature.
        thin: Corrections that travel as thin factors.
        count: Takes events.

    Attributes:
        curvature: What this rank holds, by block.
        span: Called with "refresh" for a context around each block's.
    """

    def __init__(self, layout: Layout, sharing: Sharing, reach: Reach, thin: ThinCorrections, count: Count):
        self.curvature: dict[str, Curvature] = {}
        self.span: Span = nullcontext
        self.layout, self.sharing, self.reach, self.thin, self.count = layout, sharing, reach, thin, count

    def begin(
        self, members: Members, samples: int, batch: int, step: int, refused: Collection[str] = (), idle: bool = False
    ) -> Refresh | None:
        """Agree with the other ranks on who makes curvature of what. A collective call.

        Args:
            members: What this rank captured.
            samples: Number of its samples.
            batch: Number of samples that they were drawn from.
            step: The step.
            refused: Blocks whose samples cannot be used.
            idle: Whether there are neither samples nor gradients other than zeros.

        Returns:
            The refresh, or none where it is put off: no rank has enough samples.

        Raises:
            OrderError: Nothing was captured, and no curvature is held.
            BatchError: The batch is too small, and no curvature is held.
            MemoryBudgetError: No plan fits the memory budget.
        """
        sharing, options = self.sharing, self.sharing.options
        counts = (samples,) if options.curvature_samples is None else (samples, batch)
        census = Census.gather(members, counts, sharing.entries, sharing.strategy.census)
        ranks = range(len(census.samples))
        rows = [census.rows(rank, options.positions) for rank in ranks]
        once = options.serves_once(step)  # nothing held could serve instead
        least = [1 if options.reweight or (once and self.reach.begun_on(rank)) else 2 for rank in ranks]
        short = {rank for rank in ranks if rows[rank] < least[rank]}
        enough = {True: sum(rows) >= min(least), False: len(short) < len(ranks)}
        able = [strategy for strategy in sharing.strategy.candidates() if enough[strategy.pooled]]
        if not able:
            if not (idle and max(rows) == 0):
                self._put_off(max(rows))
            return None
        sharing.plan(able, census, short, step, self.curvature)
        if not sharing.strategy.pooled:
            census = census.without(short)
            if sharing.strategy.rank in short:
                members.clear()
                self._put_off(rows[sharing.strategy.rank], alone=True)
        self._count_unused({name for own in census.shapes for name in own} | set(refused))
        blocks, strategy = self.layout.blocks, sharing.strategy
        return Refresh(self, exchange(blocks, options, strategy, sharing.choices, census, members, step), step)

    def go_on(self, last_refresh: int, captured: int) -> tuple[bool, bool]:
        """Go on with the curvature held where every rank can; else let go of it on all. A collective call.

        Args:
            last_refresh: Step of its refresh, -1 before the first.
            captured: The samples that this rank has captured, -1 where its layers were not listened to.

        Returns:
            Whether the curvature stays, and whether a refresh can follow at once.
        """
        sharing, held, thin = self.sharing, self.curvature, self.thin
        moved = sharing.moved(held, thin.carriers)
        means = {name: float(held[name].mean) for name in moved.sources} if moved else {}
        own = Standing(moved and moved.place, last_refresh, means, captured)
        everyone = sharing.strategy.wire.gather(own)
        if moved is not None and fit_together(everyone):
            sharing.go_on_from(moved.place)
            self.curvature = {name: held[name] for name in moved.sources}
            thin.carriers = {name: thin.carriers[name] for name in moved.place.thin}
        else:
            moved = None
            sharing.start_anew()
            self.curvature, thin.carriers = {}, {}
        self.reach.restore(self.curvature)
        captures = [standing.captured for standing in everyone]
        return moved is not None, min(captures) >= 0 and max(captures) > 0

    def _put_off(self, rows: int, alone: bool = False) -> None:
        if self.reach.begun or alone:
            self.count("small_batches", "a refresh was put off: the batch had fewer than 2 samples", 1)
        elif rows == 0:
            raise OrderError(
                "step()", "no layer was captured", expected="a forward and backward pass in training mode since the "
                "hooks were placed", got="none",
                fix="Create the optimizer before the forward pass, and before torch.compile",
            )  # fmt: skip
        else:
            raise BatchError(
                "step()", "the first batch is too small for curvature", expected="at least 2 samples", got=rows,
                fix="Use a larger batch, or accumulate gradients over several",
            )  # fmt: skip

    def _count_unused(self, used: set[str]) -> None:
        unused = sorted(set(self.layout.blocks) - used - self.reach.held())
        if unused:
            self.count("unused", f"the batch did not use these layers, they pass through: {', '.join(unused)}", 1)


class Refresh:
    """One refresh, block by block, so that a block's samples die with it.

    Args:
        refreshes: Where curvature is kept.
        incoming: The samples.
        step: The step.

    Attributes:
        fresh: Whether the step under way is to use the new curvature, not that held before.
    """

    def __init__(self, refreshes: Refreshes, incoming: Incoming, step: int):
        self._all, self._incoming, self._step = refreshes, incoming, step
        self.fresh = refreshes.sharing.options.curvature_batch == "current" or not refreshes.reach.begun
        thin, self._thin = refreshes.sharing.strategy.plan.thin, refreshes.thin
        self._any_thin = bool(thin or self._thin.carriers)
        if self._any_thin:
            self._thin.prepare(incoming.refreshed, thin, self.fresh)

    def block(self, name: str) -> None:
        """Make a block's curvature by this rank alone, unless it is another's or done."""
        if name not in self._incoming.alone:
            return
        self._incoming.alone.discard(name)
        sharing, held = self._all.sharing, self._all.curvature
        block, choice, options = self._all.layout.blocks[name], sharing.choices[name], sharing.options
        try:
            with self._all.span("refresh"):
                parts, pool = self._take(name)
                if parts:
                    held[name], failed = refresh(block, parts, choice, pool, options, self._step, held.get(name))
                    self._done(name, failed)
        except FactorisationError:
            self._done(name, None)

    def _take(self, name: str) -> tuple[BlockParts, Pool]:
        """Return this rank's samples of a block; of a thin one keep everyone's factors."""
        sharing, block = self._all.sharing, self._all.layout.blocks[name]
        if name not in sharing.strategy.plan.thin:
            return self._incoming.take(block)
        everyones, choice = self._incoming.take_each(block), sharing.choices[name]
        carriers = self._thin.take(
            name,
            tuple(
                factor_of(block, parts, choice, pool, sharing.options, self._step)[0].carrier() if parts else None
                for parts, pool in everyones
            ),
        )
        rank = sharing.strategy.rank
        if carriers[rank] is None and self._all.curvature.pop(name, None) is not None:
            self._all.reach.forget(name)  # no rank could follow it
        return everyones[rank]

    def shared(self) -> None:
        """Make the curvature of the blocks that ranks factorise for one another. A collective call."""
        if self._incoming.shared:
            with self._all.span("refresh"):
                found = refresh_shared(
                    self._all.layout.blocks, self._incoming, self._all.sharing, self._step, self._all.curvature
                )
                for name, curvature, failed in found:
                    if curvature is not None:
                        self._all.curvature[name] = curvature
                    self._done(name, failed)

    def at_once(self) -> None:
        """Make curvature before it is used where that is faster and keeps no more than what was captured."""
        options, held = self._all.sharing.options, self._all.curvature
        if options.power == 1.0 or not options.serves_once(self._step):
            return
        names = [name for name in self._all.layout.blocks if name in self._all.sharing.reweighted]
        for name in names:
            self.block(name)
        with self._all.span("refresh"):
            held |= solve_rows({name: held[name] for name in names if self._made_now(name)}, options)

    def finish(self) -> None:
        """Make what is left, and tell all ranks what is held now. A collective call."""
        self.shared()
        if self._any_thin:
            self._thin.adopt()
        self._all.reach.share(self._all.sharing.strategy)

    def _made_now(self, name: str) -> bool:
        held = self._all.curvature.get(name)
        return held is not None and held.step == self._step

    def _done(self, name: str, failed: int | None) -> None:
        """Count what failed, and take note of what there is."""
        if failed is None:
            message = f"the curvature of layer {name} could not be factorised and is kept"
            self._all.count("failed_refreshes", message, 1)
            return
        self._all.reach.note(name, self._all.curvature[name])
        if failed:
            self._all.count("ladder_rungs", "", failed)
