"""What a step takes and holds on many ranks, foretold from shapes: plans as of a real run, and the alpha-beta model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Options
from ..curvature import member_io
from ..distributed import STRATEGIES
from ..distributed.communicator import Communicator
from ..distributed.plan import Rates
from ..distributed.ranks import Ranks
from ..grouping import lay_out
from ..refreshing.census import Census
from ..refreshing.proposals import overhead, propose
from ..subsets import cut_shape
from ..wrappers import unwrap
from .network import Forecast, Machine, Network, forecast, plain
from .report import plan
from .shapes import captured_shapes

FORWARD_AND_BACKWARD = 1.5  # operations of both, as a multiple of the backward pass's


def forecasts(
    model: nn.Module,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    ranks: Sequence[int],
    network: Network,
    flops: float,
    seconds: float | None = None,
    step_flops: float | None = None,
    **options: Any,
) -> list[Forecast]:
    """Foretell a step of every strategy on so many ranks, each with a batch like ``inputs``.

    Args:
        model: The model, on the meta device or not.
        inputs: A rank's batch.
        ranks: Numbers of ranks.
        network: Between them.
        flops: Operations a second of a rank.
        seconds: Of a step of one rank without curvature, measured; None: from the operations of the layers.
        step_flops: Operations a second of products of U and vectors, fewer where memory bounds them; None: ``flops``.
        **options: As for ``seng.SENG``.

    Returns:
        For each number of ranks one without curvature, called "plain", and one for each strategy.

    Raises:
        OptionError, ModelError, MemoryBudgetError: As for ``seng.SENG``.

    Cost: two forward passes, and a plan for each.
    """
    if seconds is None:
        seconds = FORWARD_AND_BACKWARD * plan(model, inputs, **options).backward_flops / flops
    chosen = Options.build("forecasts()", options)
    layout = lay_out(unwrap(model, "forecasts()"), chosen, "forecasts()")
    every = captured_shapes(model, inputs, layout)
    layers = {name: cut_shape(io, chosen.curvature_samples) for name, io in every.items()}
    members = {name: own for name, block in layout.blocks.items() if (own := member_io(block, layers))}
    shapes = {name: {k: io.shape for k, io in own.items()} for name, own in members.items()}
    samples = next(io.n for own in members.values() for io in own.values())
    gradient = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    found: list[Forecast] = []
    for world in ranks:
        census = Census((samples,) * world, (shapes,) * world)
        machine = Machine(seconds, gradient, flops, step_flops or flops)
        found.append(plain(world, machine, network))
        for strategy in on_paper(world, chosen, Rates(flops, network.bandwidth)):
            proposal = propose(layout, chosen, strategy, census, 0)
            found.append(forecast(proposal.plan, proposal.loads, overhead(layout, chosen, strategy), machine, network))
    return found


def on_paper(world: int, options: Options, rates: Rates) -> list[Ranks]:
    """Return the strategies of so many ranks, to plan with."""
    asked = options.distributed.wire_dtype
    wire_dtype = None if asked is None else getattr(torch, asked)
    kinds = [kind for kind in STRATEGIES.values() if issubclass(kind, Ranks)]
    found = [kind(wire_dtype, Communicator(0, world, dtype=wire_dtype)) for kind in kinds]
    for strategy in found:
        strategy.given_rates = rates
    return found
