"""Who makes curvature of which samples: planned at a refresh, and kept until the ranks or their samples change."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from ..blocks import Layout
from ..config import Options
from ..curvature import Curvature
from ..distributed import Plan, Strategy, cheapest, strategy_for
from ..errors import MemoryBudgetError
from ..estimators import Choice
from .census import Census
from .moving import Move, Place, move_one
from .proposals import entries_of, propose


class Sharing:
    """Plans refreshes.

    Args:
        layout: The model's blocks.
        options: Of the preconditioner.
        strategy: What ranks do together; "auto" settles on another at the first refresh.
        reweighted: Names of blocks whose direction takes the place of the weight gradient; U is what was captured.
    """

    def __init__(self, layout: Layout, options: Options, strategy: Strategy, reweighted: frozenset[str]):
        self.strategy = self.asked = strategy
        self._held_at: Place | None = None  # of curvature that the ranks have not agreed to go on with
        self.choices: dict[str, Choice] = {}
        self.options = options
        self.reweighted = reweighted
        self._layout = layout
        self.entries = entries_of(layout)
        self._planned_for: tuple[object, ...] | None = None

    def place(self) -> Place:
        """Return by whom the curvature held was made, to be saved with it."""
        strategy, plan = self.strategy, self.strategy.plan
        return self._held_at or Place(
            strategy.name, strategy.rank, strategy.world, tuple(plan.owners.items()), tuple(sorted(plan.apart)),
            tuple(sorted(plan.thin)),
        )  # fmt: skip

    @property
    def offered(self) -> Sequence[Strategy]:
        """The strategies that the option leaves to choose from, whatever "auto" has settled on."""
        return self.asked.candidates()

    def settle(self, call: str) -> None:
        """Take up the ranks that there are now.

        Raises:
            OptionError: The strategy needs ranks, and there are none.
        """
        options, before = self.options, self.strategy
        asked = strategy_for(options.distributed, call, self._layout.cut_among)
        asked.given_rates = before.given_rates
        self.resume(self.place())
        before.close()
        self.strategy = self.asked = asked

    def resume(self, place: Place) -> None:
        """Note by whom curvature was made that the ranks are to agree on, by ``go_on_from`` or ``start_anew``."""
        self._held_at, self._planned_for, self.strategy = place, None, self.asked

    def moved(self, held: Mapping[str, Curvature], thin: Container[str]) -> Move | None:
        """Return what becomes of that curvature on this rank; None where other ranks hold what it lacks.

        Args:
            held: The curvature.
            thin: Blocks of which there are all ranks' thin factors.
        """
        moved = move_one(self.place(), {name: own.nbytes() for name, own in held.items()}, self.offered)
        return moved if moved and all(name in thin for name in moved.place.thin) else None

    def go_on_from(self, place: Place) -> None:
        """Take up the plan by which the curvature held was made."""
        self.strategy = next(own for own in self.offered if own.name == place.strategy)
        self.strategy.plan = Plan(
            place.strategy, place.world, dict(place.owners), frozenset(place.apart), frozenset(place.thin)
        )
        self._held_at = None

    def start_anew(self) -> None:
        """Forget all plans, so that ranks that have made others make the same."""
        self.strategy = self.asked
        self.strategy.plan = Plan("none", 1)
        self._held_at = self._planned_for = None

    def plan(
        self, able: list[Strategy], census: Census, short: set[int], step: int, held: Mapping[str, Curvature]
    ) -> None:
        """Choose how each block is kept and who does what; at the first refresh "auto" settles on a strategy.

        Args:
            able: The strategies to choose from.
            census: What every rank captured.
            short: Ranks with too few samples for curvature of their own.
            step: The step.
            held: The curvature on this rank.

        Raises:
            MemoryBudgetError: No plan fits the memory budget.
        """
        interval, budget = self.options.interval_at(step), self.options.memory_budget
        columns = {name: own.factor.n for name, own in held.items() if own.factor is not None and self.options.ema > 0}
        key = (census, frozenset(short), interval, self.options.serves_once(step), columns)
        if self._planned_for == key:
            return
        found = {}
        for strategy in able:
            counted = census if strategy.pooled else census.without(short)
            proposal = propose(self._layout, self.options, strategy, counted, step, self.reweighted, columns)
            found[strategy.name] = strategy, proposal
        best = next(iter(found.values()))[1].plan
        if len(found) > 1:
            best = cheapest([proposal.plan for _, proposal in found.values()], self.strategy.rates, budget)
        self.strategy, chosen = found[best.name]
        self.choices = chosen.choices
        self.strategy.plan = best
        self._planned_for, self._held_at = key, None
        self._require_room(best.held[self.strategy.rank])

    def _require_room(self, held: int) -> None:
        budget = self.options.memory_budget
        if budget is not None and self.strategy.pooled and held > budget:
            raise MemoryBudgetError(
                "step()", "no plan fits memory_budget", expected=f"at least {held} bytes", got=budget,
                fix="Raise memory_budget, use more ranks, a smaller batch or exclude the largest layers",
            )  # fmt: skip
