"""Per-sample gradients of a refresh, gathered where curvature is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..blocks import Block
from ..config import Options
from ..curvature import BlockParts, Pool, in_place
from ..distributed import Strategy
from ..estimators import Choice
from ..per_sample import LayerGradients
from ..sketch import generator_for
from .census import Census
from .forms import form_of, parcel, parts_in_form, pooled, received, rounded, specs_of

Members = dict[str, dict[int, LayerGradients]]  # what each block's members captured


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


def exchange(
    blocks: Mapping[str, Block],
    options: Options,
    strategy: Strategy,
    choices: Mapping[str, Choice],
    census: Census,
    members: Members,
    step: int,
) -> Incoming:
    """Start moving samples to the ranks that make curvature of them. Empties ``members``. A collective call."""
    frames, own, specs = {}, {}, {}
    for name, block in blocks.items():
        everyones = census.of(name)
        if not strategy.reads(name) or not any(everyones):
            continue
        choice = choices[name]
        form = form_of(block, everyones, choice, options.positions)
        frames[name] = [rounded(parcel(block, theirs, form, choice), strategy.wire_dtype) for theirs in everyones]
        specs[name] = [specs_of(block, theirs) for theirs in frames[name]]
        own[name] = _maker(block, members.pop(name, {}), form, choice, options.seed, step)
    arriving = strategy.exchange(own, specs) if specs else None

    def take(name: str) -> list[BlockParts]:
        if name not in specs:
            return [in_place(blocks[name], members.pop(name))]
        assert arriving is not None
        sent = zip(frames[name], arriving(name), strict=True)
        return [received(blocks[name], theirs, tensors) for theirs, tensors in sent]

    arrived = {name for name in specs if strategy.holds(name)}
    shared = {name for name in arrived if strategy.pooled and name not in strategy.plan.apart}
    alone, refreshed = (
        (arrived - shared) | (set(members) - set(specs)),
        {name for own in census.shapes for name in own},
    )
    counts = zip(census.samples, census.batches or census.samples, strict=True)
    pools = [Pool(n, batch=batch) for n, batch in counts]
    return Incoming(pools, alone, shared, take, strategy, refreshed)


def _maker(
    block: Block, own: Mapping[int, LayerGradients], form: str, choice: Choice, seed: int, step: int
) -> Callable[[], list[Tensor]]:
    def make() -> list[Tensor]:
        generator = generator_for(seed, step, block.name)
        parts = parts_in_form(block, own, form, choice, generator)
        return [tensor for io, _ in parts for tensor in io.tensors]

    return make
