"""What a preconditioner carries from step to step, as tensors and plain values and back, tried before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from .blocks import Block
from .curvature import Curvature
from .direction import is_sketched
from .distributed import Strategy
from .gradients import squared
from .packed import anywhere, leaves, pack, readable, refusal, require_bounded, unpack
from .refreshing import Carriers, Move, Place, move
from .solve import CholeskyState, DirectState, EigenState, SolveState

VERSION = 1
BLOCKS = ("curvature", "carriers")  # parts of a state that are kept block by block
MOST_RANKS = 2**16
PLAIN: dict[str, type] = {"step": int, "last_refresh": int, "seed": int, "counters": dict, "curvature": dict}
LONGER = 2.0  # how much longer than g rounding may make damping (F + damping I)^-1 g, which is shorter
UNIT = 0.01  # how far from 1 rounding may take the norm of an eigenvector, at any precision

Signature = dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class Held:
    """What a preconditioner carries from step to step.

    Args:
        step: Completed steps.
        last_refresh: Step of the last refresh, -1 before the first.
        seed: Seed of every random draw.
        counters: Events by name.
        curvature: By block name.
        place: By whom it was made, among the ranks.
        carriers: Every rank's thin factors, by block name.
    """

    step: int
    last_refresh: int
    seed: int
    counters: dict[str, int]
    curvature: dict[str, Curvature]
    place: Place = field(default_factory=Place)
    carriers: dict[str, Carriers] = field(default_factory=dict)


def write(held: Held, signature: Signature) -> dict[str, Any]:
    """Return tensors and plain values only, keyed by qualified names."""
    return {
        "version": VERSION,
        "layout": signature,
        "step": held.step,
        "last_refresh": held.last_refresh,
        "seed": held.seed,
        "counters": dict(held.counters),
        "curvature": {name: pack(curvature) for name, curvature in held.curvature.items()},
        "place": pack(held.place),
        "carriers": {name: pack(carriers) for name, carriers in held.carriers.items()},
    }


def read(state: Any, signature: Signature, blocks: Mapping[str, Block]) -> Held:
    """Undo ``write``; every curvature is tried once on its block.

    Raises:
        StateError: The state is truncated, foreign, of another version or of another model.
    """
    with readable():
        require_bounded(state)
        return _read(state, signature, blocks)


def _read(state: Any, signature: Signature, blocks: Mapping[str, Block]) -> Held:
    keys = {"version", "layout", *PLAIN}
    if not isinstance(state, dict) or not keys <= set(state):
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise refusal("not a whole state of seng", sorted(keys), got)
    if not isinstance(state["version"], int) or state["version"] != VERSION:
        raise refusal("another version", VERSION, state["version"])
    if not isinstance(state["layout"], dict) or state["layout"] != signature:
        raise refusal("a state of another model", signature, state["layout"])
    for key, kind in PLAIN.items():
        if type(state[key]) is not kind:
            raise refusal(f"{key} cannot be read", kind.__name__, type(state[key]).__name__)
    if (
        not 0 <= state["step"] < 2**63
        or not -1 <= state["last_refresh"] <= state["step"]
        or not 0 <= state["seed"] < 2**63
    ):
        got = {key: state[key] for key in ("step", "last_refresh", "seed")}
        raise refusal("numbers out of range", "step and seed >= 0, last_refresh from -1 to step", got)
    if not all(isinstance(name, str) and type(count) is int for name, count in state["counters"].items()):
        raise refusal("counters cannot be read", "integers", state["counters"])
    if anywhere(state, lambda x: ~x.isfinite()):
        raise refusal("it holds what is not finite", "finite numbers", "NaN or inf")
    if not set(state["curvature"]) <= set(blocks):
        raise refusal("curvature of unknown layers", sorted(blocks), list(state["curvature"]))
    curvature = {name: _curvature(packed, blocks[name], state["step"]) for name, packed in state["curvature"].items()}
    counts = dict(state["counters"])
    return Held(state["step"], state["last_refresh"], state["seed"], counts, curvature, *_ranks(state, blocks))


def relocated(state: Mapping[str, Any], moved: Move | None, curvature: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state as the state of this rank: with the curvature it is to hold, or to be made anew at once."""
    place = moved.place if moved else Place("elsewhere")
    last_refresh = state["last_refresh"] if moved else -1
    return {**state, "last_refresh": last_refresh, "place": pack(place), "curvature": dict(curvature), "carriers": {}}


def destination(
    state: Mapping[str, Any], held: Sequence[Mapping[str, int]], offered: Sequence[Strategy]
) -> Move | None:
    """Return what this rank takes of a saved run's curvature, as ``move`` does, given the state of any of its ranks."""
    return move(unpack(state["place"], torch.device("cpu")), held, offered)


def moved_state(states: Sequence[Mapping[str, Any]], offered: Sequence[Strategy]) -> dict[str, Any]:
    """Return this rank's state of a run that was saved by others.

    Args:
        states: What every rank of that run has saved.
        offered: The strategies this run may use.

    Raises:
        StateError: A state cannot be read.
    """
    for own in states:
        require_bounded(own)
    state = states[offered[0].rank % len(states)]
    held = [{name: _nbytes(packed) for name, packed in own["curvature"].items()} for own in states]
    moved = destination(state, held, offered)
    sources = moved.sources if moved else {}
    return relocated(state, moved, {name: states[rank]["curvature"][name] for name, rank in sources.items()})


def _nbytes(packed: Any) -> int:
    return sum(x.nbytes for x in leaves(packed) if isinstance(x, Tensor))


def _ranks(state: Mapping[str, Any], blocks: Mapping[str, Block]) -> tuple[Place, dict[str, Carriers]]:
    """Return what concerns other ranks; states of one process, and older ones, have none of it."""
    device = next(iter(blocks.values())).parameters[0].device
    place = unpack(state["place"], device) if "place" in state else Place()
    carriers = {name: unpack(packed, device) for name, packed in state.get("carriers", {}).items()}
    good = isinstance(place, Place) and _sound(place) and set(carriers) <= set(blocks)
    if not good or not all(_carries(own, blocks[name], place.world) for name, own in carriers.items()):
        raise refusal("what concerns other ranks cannot be read", "a Place and known layers", state.get("place"))
    return place, carriers


def _sound(place: Place) -> bool:
    """Return whether a place is one that ranks can be at."""
    counts = type(place.rank) is int and type(place.world) is int and 0 <= place.rank < place.world <= MOST_RANKS
    owners = all(isinstance(name, str) and type(rank) is int and 0 <= rank < place.world for name, rank in place.owners)
    return counts and owners and all(isinstance(name, str) for name in (place.strategy, *place.apart, *place.thin))


def _carries(carriers: Any, block: Block, world: int) -> bool:
    """Return whether these are every rank's thin factors of a block."""
    each = isinstance(carriers, tuple) and len(carriers) == world and any(carriers)
    return each and all(c is None or _shapes(c) == [p.numel() for p in block.parameters] for c in carriers)


def _shapes(factor: Any) -> list[int]:
    return [rows * columns for rows, columns in factor.shapes]


def _curvature(packed: Any, block: Block, step: int) -> Curvature:
    earlier = {"batch": 0, "largest": None}  # states of earlier versions lack these
    packed = {**earlier, **packed} if isinstance(packed, dict) else packed
    curvature = unpack(packed, block.parameters[0].device)
    try:
        usable = isinstance(curvature, Curvature) and _possible(curvature, block, step) and _works(curvature, block)
    except Exception as error:
        raise refusal("curvature cannot be used", "tensors that fit together", str(error), block.name) from error
    if not usable:
        raise refusal("curvature cannot be used", "the curvature of this layer", type(curvature).__name__, block.name)
    return curvature


def _possible(curvature: Curvature, block: Block, step: int) -> bool:
    """Return whether a refresh before this step could have made these numbers."""
    solved = [x for x in leaves(pack(replace(curvature, factor=None))) if isinstance(x, Tensor)]
    largest = curvature.mean if curvature.largest is None else curvature.largest
    scalars = all(x.shape == () for x in (curvature.mean, curvature.peak, curvature.damping, largest))
    rows = all(x is None or x.dim() == 1 for x in (curvature.row_sums, curvature.row_solution))
    counts = 0 <= curvature.samples < 2**63 and 0 <= curvature.batch < 2**63 and 0 <= curvature.step < max(step, 1)
    least = curvature.damping >= 0 if curvature.factor is None else curvature.damping > 0  # none: all gradients were 0
    sizes = bool(0 <= curvature.mean <= curvature.peak) and bool(largest >= 0) and bool(least)
    alike = {x.dtype for x in solved} == {block.compute_dtype}
    return alike and scalars and rows and counts and sizes and _positive(curvature.state)


def _positive(state: SolveState) -> bool:
    """Return whether a state could be of a positive semidefinite K."""
    if isinstance(state, EigenState):
        unit = (torch.linalg.vector_norm(state.vectors, dim=0) - 1).abs() < UNIT
        return bool((state.values >= 0).all()) and bool(unit.all())
    matrix = state.factor if isinstance(state, CholeskyState) else cast("DirectState", state).gram
    return bool((matrix.diagonal() >= 0).all())


def _works(curvature: Curvature, block: Block) -> bool:
    """Apply the curvature to a gradient: what does not fit together fails, or gives another shape or no number."""
    factor, state = curvature.factor, curvature.state
    if factor is None:
        return True
    grads = tuple(torch.ones(p.shape, dtype=block.compute_dtype, device=p.device) for p in block.parameters)
    before, z = squared(grads), state.coefficients(factor.mv(grads), curvature.damping, 1.0)
    factor.add_rmv_(grads, z)
    fits = _shapes(factor) == [p.numel() for p in block.parameters] and state.matvec(z).shape == (factor.n,)
    shorter = is_sketched(curvature) or bool(squared(grads) <= LONGER**2 * before)
    return fits and shorter and all(bool(x.isfinite().all()) for x in (*grads, z))
