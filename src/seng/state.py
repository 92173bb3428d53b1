"""State as tensors and plain values: frozen dataclasses of known types to dictionaries and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import Block
from .curvature import Curvature
from .distributed import Strategy
from .errors import StateError
from .factors import FACTOR_TYPES
from .refreshing import Carriers, Move, Place, move
from .sketch import SKETCH_TYPES
from .solve import SOLVE_TYPES

TYPES: dict[str, type] = {**FACTOR_TYPES, **SKETCH_TYPES, **SOLVE_TYPES, "Curvature": Curvature, "Place": Place}
VERSION = 1
PLAIN: dict[str, type] = {"step": int, "last_refresh": int, "seed": int, "counters": dict, "curvature": dict}

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
    keys = {"version", "layout", *PLAIN}
    if not isinstance(state, dict) or not keys <= set(state):
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise refusal("not a whole state of seng", sorted(keys), got)
    if not isinstance(state["version"], int) or state["version"] != VERSION:
        raise refusal("another version", VERSION, state["version"])
    if not isinstance(state["layout"], dict) or state["layout"] != signature:
        raise refusal("a state of another model", signature, state["layout"])
    for key, kind in PLAIN.items():
        if not isinstance(state[key], kind):
            raise refusal(f"{key} cannot be read", kind.__name__, type(state[key]).__name__)
    if not all(isinstance(count, int) for count in state["counters"].values()):
        raise refusal("counters cannot be read", "integers", state["counters"])
    if not set(state["curvature"]) <= set(blocks):
        raise refusal("curvature of unknown layers", sorted(blocks), list(state["curvature"]))
    curvature = {name: _curvature(packed, blocks[name]) for name, packed in state["curvature"].items()}
    counts = dict(state["counters"])
    return Held(state["step"], state["last_refresh"], state["seed"], counts, curvature, *_ranks(state, blocks))


def relocated(state: Mapping[str, Any], moved: Move | None, curvature: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state as the state of this rank: with the curvature it is to hold, or to be made anew at once."""
    place = moved.place if moved else Place("elsewhere")
    last_refresh = state["last_refresh"] if moved else -1
    return {**state, "last_refresh": last_refresh, "place": pack(place), "curvature": dict(curvature), "carriers": {}}


def moved_state(states: Sequence[Mapping[str, Any]], offered: Sequence[Strategy]) -> dict[str, Any]:
    """Return this rank's state of a run that was saved by others.

    Args:
        states: What every rank of that run has saved.
        offered: The strategies this run may use.

    Raises:
        StateError: A state cannot be read.
    """
    state = states[offered[0].rank % len(states)]
    held = [{name: _nbytes(packed) for name, packed in own["curvature"].items()} for own in states]
    moved = move(unpack(state["place"], torch.device("cpu")), held, offered)
    sources = moved.sources if moved else {}
    return relocated(state, moved, {name: states[rank]["curvature"][name] for name, rank in sources.items()})


def _nbytes(packed: Any) -> int:
    if isinstance(packed, Tensor):
        return packed.nbytes
    items = packed.values() if isinstance(packed, Mapping) else packed if isinstance(packed, tuple | list) else ()
    return sum(map(_nbytes, items))


def refusal(problem: str, expected: object, got: object, layer: str | None = None) -> StateError:
    """Return the error of a state that cannot be loaded."""
    fix = "Load the state of this model and base, saved by this version of seng"
    return StateError("load_state_dict()", problem, expected=str(expected), got=got, layer=layer, fix=fix)


def pack(value: Any) -> Any:
    """Return dictionaries, tuples, tensors and plain values only; loads with ``weights_only=True``."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        return {"type": kind, **{field.name: pack(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, tuple):
        return tuple(pack(item) for item in value)
    return value


def unpack(packed: Any, device: torch.device) -> Any:
    """Undo ``pack``, tensors on the given device.

    Raises:
        StateError: A type is unknown, or fields are missing.
    """
    if isinstance(packed, Tensor):
        return packed.to(device)
    if isinstance(packed, tuple | list):
        return tuple(unpack(item, device) for item in packed)
    if not isinstance(packed, dict):
        return packed
    name = packed.get("type")
    kind = TYPES.get(name) if isinstance(name, str) else None
    values = {key: unpack(item, device) for key, item in packed.items() if key != "type"}
    if kind is None or set(values) != {field.name for field in fields(kind)}:
        raise refusal("an entry cannot be read", f"one of {sorted(TYPES)} with its fields", name)
    return kind(**values)


def _ranks(state: Mapping[str, Any], blocks: Mapping[str, Block]) -> tuple[Place, dict[str, Carriers]]:
    """Return what concerns other ranks; states of one process, and older ones, have none of it."""
    device = next(iter(blocks.values())).parameters[0].device
    place = unpack(state["place"], device) if "place" in state else Place()
    carriers = {name: unpack(packed, device) for name, packed in state.get("carriers", {}).items()}
    if not isinstance(place, Place) or not set(carriers) <= set(blocks):
        raise refusal("what concerns other ranks cannot be read", "a Place and known layers", state.get("place"))
    return place, carriers


def _curvature(packed: Any, block: Block) -> Curvature:
    curvature = unpack(packed, block.parameters[0].device)
    try:
        usable = isinstance(curvature, Curvature) and _works(curvature, block)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise refusal("curvature cannot be used", "tensors that fit together", str(error), block.name) from error
    if not usable:
        raise refusal("curvature cannot be used", "the curvature of this layer", type(curvature).__name__, block.name)
    return curvature


def _works(curvature: Curvature, block: Block) -> bool:
    """Apply the curvature to a zero gradient: what does not fit together fails, or gives another shape."""
    factor, state, dtype = curvature.factor, curvature.state, block.compute_dtype
    scalars = all(x.shape == () and x.dtype == dtype for x in (curvature.mean, curvature.damping))
    counts = isinstance(curvature.samples, int) and isinstance(curvature.step, int)
    if factor is None:
        return scalars and counts
    zeros = tuple(torch.zeros(p.shape, dtype=dtype, device=p.device) for p in block.parameters)
    z = state.coefficients(factor.mv(zeros), curvature.damping, 1.0)
    factor.add_rmv_(zeros, z)
    sizes = [rows * columns for rows, columns in factor.shapes]
    fits = sizes == [p.numel() for p in block.parameters] and state.matvec(z).shape == (factor.n,)
    return scalars and counts and fits
