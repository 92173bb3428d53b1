"""A refresh whose Gram matrices are dealt: all ranks hold U, owners alone factorise and hand their solutions on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch

from ..blocks import Block
from ..curvature import Curvature, Draft, draft, from_message, hold, message_size, read_heads, solve, to_message
from ..solve import FactorisationError
from .sharing import Incoming, Sharing


def refresh_shared(
    blocks: Mapping[str, Block],
    incoming: Incoming,
    sharing: Sharing,
    step: int,
    held: Mapping[str, Curvature],
) -> Iterator[tuple[str, Curvature | None, int | None]]:
    """Make the curvature of all blocks that this rank holds together with others. A collective call.

    Owners take their own blocks first, so that solving is spread over the ranks; the rest of U is built after that.

    Yields:
        Name, curvature, and rungs of the ladder that failed; None for both where no factorisation held.
    """
    strategy, options = sharing.strategy, sharing.options
    names = [name for name in blocks if name in incoming.shared]
    incoming.shared = set()
    drafts: dict[str, Draft] = {}
    messages = {}
    for name in sorted(names, key=lambda name: not strategy.solves(name)):
        parts, pool = incoming.take(blocks[name])
        old = held.get(name)
        drafts[name] = draft(blocks[name], parts, sharing.choices[name], pool, options, step, old)
        if strategy.solves(name):
            solution = None
            like = torch.empty((), dtype=blocks[name].compute_dtype, device=strategy.device)
            with suppress(FactorisationError):
                solution = solve(drafts[name], options, step, old)
            messages[name] = to_message(drafts[name], solution, like)
    specs = {name: ((message_size(drafts[name]),), blocks[name].compute_dtype) for name in names}
    found = strategy.spread(messages, specs)
    for (name, message), head in zip(found.items(), read_heads(list(found.values())), strict=True):
        solution = from_message(drafts[name], message, head)
        if solution is None:
            yield name, None, None
        else:
            yield name, hold(drafts.pop(name), solution, step), solution.failed
