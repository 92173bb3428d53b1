"""A refresh among all ranks: what they captured, who makes curvature of which samples, and how those get there.

One process is the case of one rank, which reads its own samples.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..blocks import Block, Layout
from ..config import Options
from ..curvature import HEAD, BlockParts, Curvature, Pool, in_place
from ..distributed import Load, Plan, Strategy, cheapest, strategy_for
from ..distributed.parcels import KINDS, NUMBERS, Frame, frame_of, shape_only, tensors_of
from ..distributed.wire import parcel_bytes
from ..errors import MemoryBudgetError
from ..estimators import Choice
from ..gradient_check import COLUMNS
from ..planner import choose_all
from ..sizes import Size
from ..sketch import generator_for
from ..types import LayerIO
from .forms import LOW_RANK, form_of, framed, parts_in_form, pooled, received, rounded, specs_of, widths
from .moving import Move, Place, move_one
from .reach import bounds_passing

Members = dict[str, dict[int, LayerIO]]  # what each block's members captured


@dataclass(frozen=True)
class Census:
    """What every rank captured, in shapes.

    Args:
        samples: By rank.
        frames: By rank: of each block that was used, each member's.
        batches: By rank, the number of samples that these were drawn from; empty: all of them.
    """

    samples: tuple[int, ...]
    frames: tuple[dict[str, dict[int, Frame]], ...]
    batches: tuple[int, ...] = ()

    def of(self, block: str) -> list[dict[int, Frame]]:
        """Return each rank's frames of a block, empty where it was not used."""
        return [own.get(block, {}) for own in self.frames]

    def rows(self, rank: int, positions: str) -> int:
        """Return how many rows of U a rank has."""
        longest = max((frame.s for own in self.frames[rank].values() for frame in own.values()), default=1)
        return self.samples[rank] * (longest if positions == "expand" else 1)

    def without(self, ranks: set[int]) -> Census:
        """Return the census as if some ranks had no samples."""
        samples = tuple(0 if rank in ranks else n for rank, n in enumerate(self.samples))
        batches = tuple(0 if rank in ranks else n for rank, n in enumerate(self.batches))
        return Census(samples, tuple({} if rank in ranks else own for rank, own in enumerate(self.frames)), batches)


@dataclass(frozen=True)
class Proposal:
    """What a strategy would do with a census: how each block is kept, what each costs, and who does what."""

    choices: dict[str, Choice]
    loads: dict[str, Load]
    plan: Plan


class Incoming:
    """The samples of a refresh, taken block by block so that they die with it.

    Args:
        pools: By rank, its samples.
        alone: Blocks that this rank makes curvature of by itself.
        shared: Blocks whose curvature all ranks make, each a part of the work.
        take: Gives every rank's parts of a block, or this rank's alone.
        strategy: Whose ranks they are.
        refreshed: Blocks of which some rank has samples.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        alone: set[str],
        shared: set[str],
        take: Callable[[str], list[BlockParts]],
        strategy: Strategy,
        refreshed: set[str],
    ):
        self.alone, self.shared, self.refreshed = alone, shared, refreshed
        self._pools, self._take, self._strategy = pools, take, strategy

    def take(self, block: Block) -> tuple[BlockParts, Pool]:
        """Return the samples of the block's curvature."""
        parts = self._take(block.name)
        if self._strategy.pooled:
            samples, batch = sum(own.samples for own in self._pools), sum(own.batch for own in self._pools)
            return pooled(block, parts), Pool(samples, self._strategy.world, batch)
        return parts[0], self._pools[self._strategy.rank]

    def take_each(self, block: Block) -> list[tuple[BlockParts, Pool]]:
        """Return each rank's samples, for a block whose thin factors are shared."""
        return list(zip(self._take(block.name), self._pools, strict=True))


class Sharing:
    """Plans refreshes and moves samples.

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
        self._counts = 1 if options.curvature_samples is None else 2  # numbers that ranks tell of their batches
        self._layout = layout
        self._entries = [(block, k) for block in layout.blocks.values() for k in _kinds(block)]
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

    def census(self, members: Members, samples: int, batch: int) -> Census:
        """Tell all ranks what this one captured. A collective call.

        Args:
            members: What it captured.
            samples: Number of samples.
            batch: Number of samples that they were drawn from; told where some are left out by choice.
        """
        numbers = [samples, batch][: self._counts]
        for block, k in self._entries:
            io = members.get(block.name, {}).get(k)
            numbers += Frame().numbers() if io is None else frame_of(io).numbers()
        everyones = self.strategy.census(numbers)
        frames = tuple(self._frames(row[self._counts :]) for row in everyones)
        batches = tuple(row[1] for row in everyones) if self._counts > 1 else ()
        return Census(tuple(row[0] for row in everyones), frames, batches)

    def _frames(self, row: list[int]) -> dict[str, dict[int, Frame]]:
        found: dict[str, dict[int, Frame]] = {}
        for place, (block, k) in enumerate(self._entries):
            frame = Frame(*row[place * NUMBERS : (place + 1) * NUMBERS])
            if frame.kind:
                found.setdefault(block.name, {})[k] = frame
        return found

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
            found[strategy.name] = strategy, self.propose(strategy, counted, step, columns)
        best = next(iter(found.values()))[1].plan
        if len(found) > 1:
            best = cheapest([proposal.plan for _, proposal in found.values()], self.strategy.rates, budget)
        self.strategy, chosen = found[best.name]
        self.choices = chosen.choices
        self.strategy.plan = best
        self._planned_for, self._held_at = key, None
        self._require_room(best.held[self.strategy.rank])

    def propose(
        self, strategy: Strategy, census: Census, step: int, columns: Mapping[str, int] | None = None
    ) -> Proposal:
        """Return what a strategy would do. Pure.

        Args:
            strategy: The strategy.
            census: What every rank captured.
            step: The step.
            columns: Columns of held factors that new ones are merged with.

        Raises:
            MemoryBudgetError: Even the smallest forms need more than the budget.
        """
        choices = self._choose(census, step, strategy)
        loads = self._loads(census, choices, columns or {}, strategy)
        interval, budget = self.options.interval_at(step), self.options.memory_budget
        plan = strategy.arrange(loads, interval, self.overhead(strategy), budget)
        if self._layout.passing and bounds_passing(self.options) and self._layout.cut_among > 1:
            told = 8 * (strategy.world - 1)  # the square of the parts of gradients that pass through
            plan = replace(plan, step_bytes=tuple(count + told for count in plan.step_bytes))
        return Proposal(choices, loads, plan)

    def _require_room(self, held: int) -> None:
        budget = self.options.memory_budget
        if budget is not None and self.strategy.pooled and held > budget:
            raise MemoryBudgetError(
                "step()", "no plan fits memory_budget", expected=f"at least {held} bytes", got=budget,
                fix="Raise memory_budget, use more ranks, a smaller batch or exclude the largest layers",
            )  # fmt: skip

    def _choose(self, census: Census, step: int, strategy: Strategy) -> dict[str, Choice]:
        options, sizes = self.options, {}
        for name, block in self._layout.blocks.items():
            frames = _joined(census.of(name), strategy.pooled)
            if frames:
                ios = [shape_only(frame, widths(block, block.members[k][1])) for k, frame in sorted(frames.items())]
                sizes[name] = Size.of_block(ios, block.compute_dtype.itemsize, options.expanded, block.tied)
        if options.memory_budget is not None and strategy.pooled:  # each rank holds its share
            options = options.with_(memory_budget=options.memory_budget * strategy.world)
        return choose_all(sizes, options, step, "step()", self.reweighted) if sizes else {}

    def _loads(
        self, census: Census, choices: Mapping[str, Choice], columns: Mapping[str, int], strategy: Strategy
    ) -> dict[str, Load]:
        loads = {}
        for name, block in self._layout.blocks.items():
            update = strategy.update_bytes([(tuple(p.shape), p.dtype) for p in block.parameters])
            parts = _part_bytes(block, strategy)
            loads[name] = Load(update=update, parts=parts)
            if name in choices and strategy.name != "none":
                loads[name] = self._load(
                    block, census.of(name), choices[name], columns.get(name, 0), strategy, loads[name]
                )
        return loads

    def _load(
        self,
        block: Block,
        frames: list[dict[int, Frame]],
        choice: Choice,
        merged: int,
        strategy: Strategy,
        travelling: Load,
    ) -> Load:
        form = self._form(block, frames, choice, strategy)
        sizes = {id(own): own for own in frames}  # ranks with samples of the same shapes send the same
        sent = {key: rounded(framed(block, own, form, choice), strategy.wire_dtype) for key, own in sizes.items()}
        nbytes = {key: parcel_bytes(specs_of(block, own)) for key, own in sent.items()}
        counts = tuple(max((frame.n for frame in own.values()), default=0) for own in frames)
        n, dtype = sum(counts), block.compute_dtype
        if not any(_is_lookup(own) for own in frames):
            n = choice.form.columns(n, sum(p.numel() for p in block.parameters))
        message = HEAD + n + choice.solver.vector_size(n + merged)
        return replace(
            travelling,
            refresh_flops=choice.refresh_flops,
            apply_flops=choice.apply_flops,
            held=choice.nbytes,
            parcels=tuple(nbytes[id(own)] for own in frames),
            columns=counts,
            itemsize=dtype.itemsize,
            solution=parcel_bytes([((message,), dtype)]),
            thin=form == LOW_RANK and not strategy.pooled and not block.cuts,
            repeatable=strategy.device.type == "cpu" or not any(_is_lookup(own) for own in frames),
        )

    def _form(self, block: Block, frames: list[dict[int, Frame]], choice: Choice, strategy: Strategy) -> str:
        form = form_of(block, frames, choice, self.options.positions)
        return LOW_RANK if choice.form.wire_rank is not None and not strategy.pooled and form != "captured" else form

    def overhead(self, strategy: Strategy) -> int:
        """Bytes of every refresh beside samples: the census, the gradient check and the table of mean eigenvalues."""
        check, blocks = 0 if self._layout.sharded else COLUMNS, len(self._layout.blocks)
        return (strategy.world - 1) * 8 * (self._counts + NUMBERS * len(self._entries) + (1 + check) * blocks)

    def exchange(self, census: Census, members: Members, step: int) -> Incoming:
        """Start moving samples to the ranks that make curvature of them. Empties ``members``. A collective call."""
        strategy, blocks = self.strategy, self._layout.blocks
        frames, own, specs = {}, {}, {}
        for name, block in blocks.items():
            everyones = census.of(name)
            if not strategy.reads(name) or not any(everyones):
                continue
            choice = self.choices[name]
            form = self._form(block, everyones, choice, strategy)
            frames[name] = [rounded(framed(block, theirs, form, choice), strategy.wire_dtype) for theirs in everyones]
            specs[name] = [specs_of(block, theirs) for theirs in frames[name]]
            own[name] = self._maker(block, members.pop(name, {}), form, choice, step)
        arriving = strategy.exchange(own, specs) if specs else None

        def take(name: str) -> list[BlockParts]:
            if name not in specs:
                return [in_place(blocks[name], members.pop(name))]
            assert arriving is not None
            sent = zip(frames[name], arriving(name), strict=True)
            return [received(blocks[name], theirs, tensors) for theirs, tensors in sent]

        arrived = {name for name in specs if strategy.holds(name)}
        shared = {name for name in arrived if strategy.pooled and name not in strategy.plan.apart}
        pools = [
            Pool(n, batch=batch) for n, batch in zip(census.samples, census.batches or census.samples, strict=True)
        ]
        alone, refreshed = (
            (arrived - shared) | (set(members) - set(specs)),
            {name for own in census.frames for name in own},
        )
        return Incoming(pools, alone, shared, take, strategy, refreshed)

    def _maker(
        self, block: Block, own: Mapping[int, LayerIO], form: str, choice: Choice, step: int
    ) -> Callable[[], list[Tensor]]:
        def make() -> list[Tensor]:
            generator = generator_for(self.options.seed, step, block.name)
            parts = parts_in_form(block, own, form, choice, generator)
            return [tensor for io, _ in parts for tensor in tensors_of(io)]

        return make


def _kinds(block: Block) -> list[int]:
    """Return the first member of each kind: those that join with an earlier one need no place of their own."""
    kinds = [(slots, member.layer) for member, slots in block.members]
    return [k for k, kind in enumerate(kinds) if kinds.index(kind) == k]


def _part_bytes(block: Block, strategy: Strategy) -> tuple[int, ...]:
    """Return the bytes of each rank's parts of a gradient that is cut among the ranks."""
    pairs = list(zip(block.cuts, block.parameters, strict=True)) if block.cuts else []
    each = [[(cut.shape_of(rank), p.dtype) for cut, p in pairs] for rank in range(strategy.world)]
    return tuple(strategy.part_bytes(specs) for specs in each) if pairs else ()


def _joined(frames: list[dict[int, Frame]], pooled: bool) -> dict[int, Frame]:
    """Return the frames of a block's samples on all ranks together, or of the largest share."""
    found: dict[int, list[Frame]] = {}
    for own in frames:
        for k, frame in own.items():
            found.setdefault(k, []).append(frame)
    count = sum if pooled else max
    return {
        k: replace(alike[-1], n=count(frame.n for frame in alike), s=max(frame.s for frame in alike))
        for k, alike in found.items()
    }


def _is_lookup(own: Mapping[int, Frame]) -> bool:
    return any(KINDS[frame.kind] == "lookup" for frame in own.values())
