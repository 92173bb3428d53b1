"""A refresh whose Gram matrices are dealt: all ranks hold U, owners alone factorise and hand their solutions on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks import Block
from ..curvature import Curvature, Draft, Solution, draft, hold, solve
from ..linalg import pack_triangle, unpack_triangle
from ..solve import EigenState, FactorisationError, SolveState

if TYPE_CHECKING:
    from .incoming import Incoming
    from .sharing import Sharing

HEAD = 6  # numbers in front of a message: kind, usable, failed rungs, mean, largest mean so far, damping


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
            yield name, hold(drafts.pop(name), solution, step, held.get(name)), solution.failed


def message_length(n: int, held: int, solver: type[SolveState]) -> int:
    """Return the length of the vector that hands on what a solver makes of n new columns of U, ``held`` once merged."""
    return HEAD + n + solver.vector_size(held)


def message_size(drafted: Draft) -> int:
    """Return the same, given U."""
    return message_length(drafted.batch.n, drafted.factor.n, drafted.solver)


def to_message(drafted: Draft, solution: Solution | None, like: Tensor) -> Float[Tensor, " m"]:
    """Return a solution as a vector of ``message_size`` numbers of the dtype of ``like``; None: nothing held."""
    message = like.new_zeros(message_size(drafted))
    if solution is None:
        return message
    if isinstance(solution.state, drafted.solver):
        kind, vector = 1.0, solution.state.to_vector()
    else:  # the ladder ended at eigenvalues: K fits where its Cholesky factor would have been
        assert solution.gram is not None
        kind, vector = 2.0, pack_triangle(solution.gram)
    scalars = torch.stack([solution.mean, solution.peak, solution.damping])
    head = message.new_tensor([kind, solution.usable, solution.failed])
    return torch.cat([head, scalars, solution.row_sums, vector])


def read_heads(messages: Sequence[Float[Tensor, " _"]]) -> list[list[float]]:
    """Return what ``from_message`` has to know on the host, of all messages at once: one wait for the device."""
    return torch.stack([message[:3].double() for message in messages]).tolist() if messages else []


def from_message(drafted: Draft, message: Float[Tensor, " m"], head: Sequence[float]) -> Solution | None:
    """Undo ``to_message``; every rank does, the owner too, so that all hold the same bits."""
    kind, usable, failed = head
    if not kind:
        return None
    (mean, peak, damping), n = (x.clone() for x in message[3:HEAD]), drafted.batch.n
    sums, vector = message[HEAD : HEAD + n].clone(), message[HEAD + n :]
    if kind == 1:
        state = drafted.solver.from_vector(vector, drafted.factor.n, damping)
    else:
        gram = unpack_triangle(vector, drafted.factor.n, symmetric=True)
        state, _ = EigenState.factorise(gram, damping)
    return Solution(state, mean, peak, damping, sums, bool(usable), int(failed))
