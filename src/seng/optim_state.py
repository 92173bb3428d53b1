"""SENG's state as torch.optim lays one out: by parameter, numbered over the groups of all bases.

Tools that read optimizers, torch.distributed.checkpoint first of all, keep "state" and "param_groups", nothing else.
What the preconditioner holds of a block is therefore kept there, too, with the block's first parameter: its tensors,
and its plain values as JSON in a tensor of bytes, which every such tool can store. What concerns no block is kept with
the first one.

Such tools read a checkpoint into the state of another optimizer, often a new one, and tensors of other sizes do not
fit. What an optimizer without curvature holds, too, is therefore padded to a size that follows from the model alone,
and all else has keys of its own.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .packed import AXES, TENSOR, from_bytes, refusal, rejoin, require_bounded, separate, to_bytes
from .state import BLOCKS, relocated

OWN = "seng"  # in a parameter's state: the preconditioner's part
PLAIN = "plain"  # in that: the plain values, those of a new optimizer, too
HELD = "held"  # beside them: the plain values of the block's curvature, where there is any
ROOM, ROOM_PER_BLOCK = 2**12, 64  # bytes for step, seed and counters; for what ranks say of a block beside its name
MULTIPLE = 2**8  # of bytes, for plain values of curvature: larger numbers need no more of them


class BaseStates(MutableMapping[Any, Any]):
    """The states of all bases as one mapping; changes reach the base that has the parameter.

    Args:
        bases: The bases.
        blocks: First parameters of blocks, which have a place for the preconditioner's part.
        begun: Whether that part is more than a place.
    """

    def __init__(self, bases: Sequence[Optimizer], blocks: Sequence[Tensor], begun: bool):
        self._bases, self._blocks, self._begun = bases, blocks, begun

    def _of(self, key: Any) -> MutableMapping[Any, Any]:
        for base in self._bases:
            if key in base.state or any(key is p for group in base.param_groups for p in group["params"]):
                return base.state
        return self._bases[-1].state

    def __getitem__(self, key: Any) -> Any:
        held = self._of(key)[key]
        return ChainMap(held, {OWN: {}}) if any(key is p for p in self._blocks) else held

    def __setitem__(self, key: Any, value: Any) -> None:
        own = {name: item for name, item in value.items() if name != OWN} if isinstance(value, Mapping) else value
        self._of(key)[key] = own

    def __delitem__(self, key: Any) -> None:
        del self._of(key)[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.fromkeys(chain(*(base.state for base in self._bases), self._blocks if self._begun else ())))

    def __len__(self) -> int:
        return len(list(iter(self)))


def whole_state(
    bases: Sequence[Optimizer], preconditioner: Mapping[str, Any], places: Mapping[str, tuple[int, torch.device]]
) -> dict[str, Any]:
    """Return the state of bases and preconditioner: each part's own, and all of it as ``torch.optim`` lays it out.

    Args:
        bases: The bases; those that have a form of their own for their states have it alone.
        preconditioner: Its state.
        places: Number and device of each block's first parameter.
    """
    own = [base.state_dict() for base in bases]
    if not all({"state", "param_groups"} <= base.keys() for base in own):
        return {"bases": own, "preconditioner": preconditioner}
    own = numbered(own)
    return {"bases": own, "preconditioner": preconditioner, **merged(own, preconditioner, places)}


def parts_of(
    state: Any, bases: Sequence[Optimizer], places: Mapping[str, tuple[int, torch.device]], layout: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Undo ``whole_state``, from either form alone, too: return the bases' state dicts and the preconditioner's.

    Raises:
        StateError: The state is of no SENG, of other bases or of another model, or its two forms differ.
    """
    keys = set(state) if isinstance(state, dict) else set()
    own, torchs = {"bases", "preconditioner"}, {"state", "param_groups"}
    require_bounded(state)
    if not (own <= keys or (torchs <= keys and not own & keys)):
        got = sorted(map(str, keys)) if isinstance(state, dict) else type(state).__name__
        raise refusal("not a whole state of seng", f"keys {sorted(own)} or {sorted(torchs)}", got)
    if not own <= keys:
        return split(state, bases, layout)
    states, preconditioner = state["bases"], state["preconditioner"]
    if not isinstance(states, list) or len(states) != len(bases):
        got = len(states) if isinstance(states, list) else type(states).__name__
        raise refusal("other base optimizers", f"{len(bases)} states", got)
    if isinstance(preconditioner, dict) and preconditioner.get("layout", layout) != layout:
        raise refusal("a state of another model", layout, preconditioner["layout"])
    if torchs & keys:
        given = {key: state.get(key) for key in torchs}
        if not alike(merged(numbered(states), preconditioner, places), given):
            raise refusal("its two forms differ", f"the same in {sorted(own)} and {sorted(torchs)}", "another")
    return states, preconditioner


def numbered(bases: Sequence[Any]) -> list[Any]:
    """Return the bases' state dicts with parameters numbered over all of them."""
    found, start = [], 0
    for base in bases:
        ids = [key for group in base["param_groups"] for key in group["params"]]
        places = {key: start + k for k, key in enumerate(ids)}
        groups = [{**group, "params": [places[key] for key in group["params"]]} for group in base["param_groups"]]
        state = {places.get(key, key): held for key, held in base["state"].items()}
        found.append({**base, "state": state, "param_groups": groups})
        start += len(ids)
    return found


def merged(
    bases: Sequence[Any], preconditioner: Mapping[str, Any], places: Mapping[str, tuple[int, torch.device]]
) -> dict[str, Any]:
    """Return "state" and "param_groups" of all.

    Args:
        bases: State dicts, numbered.
        preconditioner: Its state.
        places: Number and device of each block's first parameter.
    """
    groups = [group for base in bases for group in base["param_groups"]]
    state: dict[Any, Any] = {key: {} for group in groups for key in group["params"]}
    for base in bases:
        state |= base["state"]
    common = {key: value for key, value in preconditioner.items() if key not in (*BLOCKS, "layout")}
    common["held"] = len(preconditioner["curvature"])
    room = ROOM + sum(ROOM_PER_BLOCK + 3 * len(json.dumps(block)) for block in places)  # ranks name a block 3 times
    for k, (block, (place, device)) in enumerate(places.items()):
        plain = {"block": block} if k else {"block": block, "common": common}
        own = {part: preconditioner[part][block] for part in BLOCKS if block in preconditioner[part]}
        encoded = {PLAIN: to_bytes(plain, 1 if k else room).to(device), **(_encode(own, device) if own else {})}
        state[place] = {**state[place], OWN: encoded}
    return {"state": state, "param_groups": groups}


def split(whole: Mapping[str, Any], bases: Sequence[Optimizer], layout: Any) -> tuple[list[Any], dict[str, Any]]:
    """Undo ``merged``: return the bases' state dicts and the preconditioner's.

    Where curvature of some block is missing, as after a checkpoint was read into the state of an optimizer without any,
    none is taken, and the next step begins with a refresh.
    """
    state, groups, found, start = whole["state"], whole["param_groups"], [], 0
    wanted = [len(group["params"]) for base in bases for group in base.param_groups]
    if [len(group["params"]) for group in groups] != wanted:
        raise refusal("other groups of parameters", str(wanted), [len(group["params"]) for group in groups])
    for base in bases:
        own = groups[start : start + len(base.param_groups)]
        ids = [key for group in own for key in group["params"]]
        found.append({"state": {key: held for key in ids if (held := _bare(state.get(key, {})))}, "param_groups": own})
        start += len(own)
    entries = [_decode(held[OWN]) for held in state.values() if held.get(OWN)]
    if not entries:
        raise refusal("not a whole state of seng", f"entries {OWN!r} of parameters", "none")
    [common] = [own["common"] for own in entries if "common" in own]
    held = common.pop("held")
    parts = {part: {own["block"]: own[part] for own in entries if part in own} for part in BLOCKS}
    preconditioner = {**common, "layout": layout, **parts}
    return found, preconditioner if len(parts["curvature"]) == held else relocated(preconditioner, None, {})


def alike(x: Any, y: Any) -> bool:
    """Return whether two states are the same to the bit."""
    if x is y:
        return True
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.cpu(), y.cpu())
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        return x.keys() == y.keys() and all(alike(item, y[key]) for key, item in x.items())
    if isinstance(x, list | tuple) and isinstance(y, list | tuple):
        return len(x) == len(y) and all(alike(a, b) for a, b in zip(x, y, strict=True))
    return type(x) is type(y) and bool(x == y)


def _bare(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a base holds of a parameter. What was not there when a state was flattened has come back empty."""
    return {key: value for key, value in held.items() if key != OWN and not (isinstance(value, dict) and not value)}


def _encode(value: Any, device: torch.device) -> dict[str, Tensor]:
    """Return tensors by key, and plain values as one more.

    Flattened states may hold tensors and numbers only. Tensors of no axis become vectors of one, since torch takes them
    for what every optimizer has.
    """
    tensors: dict[str, Tensor] = {}

    def put(_: str, x: Tensor) -> dict[str, Any]:
        key = f"tensor{len(tensors)}"
        tensors[key] = x if x.dim() else x.reshape(1)
        return {TENSOR: key, AXES: x.dim()}

    return {HELD: to_bytes(separate(value, put), MULTIPLE).to(device), **tensors}


def _decode(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``merged`` keeps with a block, without curvature where some of it is missing."""

    def get(entry: dict[str, Any]) -> Tensor:
        tensor = encoded[entry[TENSOR]]
        return tensor if entry[AXES] else tensor.reshape(())

    own = from_bytes(encoded[PLAIN])
    try:
        return own | (rejoin(from_bytes(encoded[HELD]), get) if HELD in encoded else {})
    except KeyError:  # no room was made for a tensor
        return own
