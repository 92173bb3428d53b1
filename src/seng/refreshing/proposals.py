"""What a strategy would do with the samples of a refresh: who makes curvature of what, and what that costs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..blocks import Block, Layout
from ..config import Options
from ..distributed import Load, Plan, Strategy
from ..distributed.wire import parcel_bytes
from ..estimators import Choice
from ..gradient_check import COLUMNS
from ..per_sample import Shape
from ..per_sample.shape import NUMBERS
from ..planning.choice import choose_all
from .census import Census
from .forms import LOW_RANK, form_of, parcel, rounded, specs_of
from .reach import bounds_passing
from .solutions import message_length


@dataclass(frozen=True)
class Proposal:
    """What a strategy would do with a census: how each block is kept, what each costs, and who does what."""

    choices: dict[str, Choice]
    loads: dict[str, Load]
    plan: Plan


def entries_of(layout: Layout) -> list[tuple[str, int]]:
    """Return the members that have a place in a census: the first of each kind, which others of it join."""
    found = []
    for block in layout.blocks.values():
        kinds = [(slots, member.layer) for member, slots in block.members]
        found += [(block.name, k) for k, kind in enumerate(kinds) if kinds.index(kind) == k]
    return found


def propose(
    layout: Layout,
    options: Options,
    strategy: Strategy,
    census: Census,
    step: int,
    reweighted: Collection[str] = (),
    columns: Mapping[str, int] | None = None,
) -> Proposal:
    """Return what a strategy would do. Pure.

    Args:
        layout: The model's blocks.
        options: Of the preconditioner.
        strategy: The strategy.
        census: What every rank captured.
        step: The step.
        reweighted: Names of blocks whose direction takes the place of the weight gradient.
        columns: Columns of held factors that new ones are merged with.

    Raises:
        MemoryBudgetError: Even the smallest forms need more than the budget.
    """
    choices = _choose(layout, options, strategy, census, step, reweighted)
    loads = _loads(layout, options, strategy, census, choices, columns or {})
    interval, budget = options.interval_at(step), options.memory_budget
    plan = strategy.arrange(loads, interval, overhead(layout, options, strategy), budget)
    if layout.passing and bounds_passing(options) and layout.cut_among > 1:
        told = 8 * (strategy.world - 1)  # the square of the parts of gradients that pass through
        plan = replace(plan, step_bytes=tuple(count + told for count in plan.step_bytes))
    return Proposal(choices, loads, plan)


def _choose(
    layout: Layout, options: Options, strategy: Strategy, census: Census, step: int, reweighted: Collection[str]
) -> dict[str, Choice]:
    found = {}
    for name, block in layout.blocks.items():
        shapes = census.joined(name, strategy.pooled)
        if shapes:
            own = [shapes[k] for k in sorted(shapes)]
            found[name] = Shape.of_block(own, block.compute_dtype.itemsize, options.expanded, block.tied)
    if options.memory_budget is not None and strategy.pooled:  # each rank holds its share
        options = options.with_(memory_budget=options.memory_budget * strategy.world)
    return choose_all(found, options, step, "step()", reweighted) if found else {}


def _loads(
    layout: Layout,
    options: Options,
    strategy: Strategy,
    census: Census,
    choices: Mapping[str, Choice],
    columns: Mapping[str, int],
) -> dict[str, Load]:
    loads = {}
    for name, block in layout.blocks.items():
        update = strategy.update_bytes([(tuple(p.shape), p.dtype) for p in block.parameters])
        parts = _part_bytes(block, strategy)
        loads[name] = Load(update=update, parts=parts)
        if name in choices and strategy.name != "none":
            form = form_of(block, census.of(name), choices[name], options.positions)
            loads[name] = _load(block, census, choices[name], form, columns.get(name, 0), strategy, loads[name])
    return loads


def _load(
    block: Block,
    census: Census,
    choice: Choice,
    form: str,
    merged: int,
    strategy: Strategy,
    travelling: Load,
) -> Load:
    shapes, looks_up = census.of(block.name), census.looks_up(block.name)
    sizes = {id(own): own for own in shapes}  # ranks with samples of the same shapes send the same
    sent = {key: rounded(parcel(block, own, form, choice), strategy.wire_dtype) for key, own in sizes.items()}
    nbytes = {key: parcel_bytes(specs_of(block, own)) for key, own in sent.items()}
    counts = tuple(max((shape.n for shape in own.values()), default=0) for own in shapes)
    n, dtype = sum(counts), block.compute_dtype
    if not looks_up:
        n = choice.form.columns(n, sum(p.numel() for p in block.parameters))
    message = message_length(n, n + merged, choice.solver)
    return replace(
        travelling,
        refresh_flops=choice.refresh_flops,
        apply_flops=choice.apply_flops,
        held=choice.nbytes,
        parcels=tuple(nbytes[id(own)] for own in shapes),
        columns=counts,
        itemsize=dtype.itemsize,
        solution=parcel_bytes([((message,), dtype)]),
        thin=form == LOW_RANK and not strategy.pooled and not block.cuts,
        repeatable=strategy.device.type == "cpu" or not looks_up,
    )


def overhead(layout: Layout, options: Options, strategy: Strategy) -> int:
    """Bytes of every refresh beside samples: the census, the gradient check and the table of mean eigenvalues."""
    check, counts = 0 if layout.sharded else COLUMNS, 1 if options.curvature_samples is None else 2
    return (strategy.world - 1) * 8 * (counts + NUMBERS * len(entries_of(layout)) + (1 + check) * len(layout.blocks))


def _part_bytes(block: Block, strategy: Strategy) -> tuple[int, ...]:
    """Return the bytes of each rank's parts of a gradient that is cut among the ranks."""
    pairs = list(zip(block.cuts, block.parameters, strict=True)) if block.cuts else []
    each = [[(cut.shape_of(rank), p.dtype) for cut, p in pairs] for rank in range(strategy.world)]
    return tuple(strategy.part_bytes(specs) for specs in each) if pairs else ()
