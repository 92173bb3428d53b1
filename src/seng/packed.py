"""Frozen dataclasses of known types as tensors and plain values, and plain values as JSON beside their tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from .curvature import Curvature
from .errors import SengError, StateError
from .per_sample import PerSampleGradients
from .refreshing import Place
from .sketch import Sketch
from .solve import SolveState
from .wrappers import own_part

TYPES: dict[str, Any] = {"Curvature": Curvature, "Place": Place}
TENSOR = "$tensor"  # in plain values: the key of the tensor in this place
AXES = "$axes"  # beside it: what says how its axes lie
MOST_VALUES, DEEPEST = 10**6, 50  # values and levels of containers in a state
SIMPLE: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,)}  # types of fields


def refusal(problem: str, expected: object, got: object, layer: str | None = None) -> StateError:
    """Return the error of a state that cannot be loaded."""
    fix = "Load the state of this model and base, saved by this version of seng"
    return StateError("load_state_dict()", problem, expected=str(expected), got=got, layer=layer, fix=fix)


@contextmanager
def readable(
    problem: str = "it cannot be read", expected: str = "its own state", refused: Callable[..., StateError] = refusal
) -> Iterator[None]:
    """Turn what values of other types or shapes than were written lead to into the error of a state."""
    try:
        yield
    except SengError:
        raise
    except Exception as error:
        raise refused(problem, expected, f"{type(error).__name__}: {error}") from error


def require_bounded(state: Any) -> None:
    """Refuse a state whose containers hold themselves, or hold others many times over: reading it would not end."""
    for _ in leaves(state):
        pass


def leaves(value: Any) -> Iterator[Any]:
    """Yield what lies in containers.

    Raises:
        StateError: A container holds itself, be it by way of others, or as many of them as no state has.
    """
    left, seen = [(value, 0)], 0
    while left:
        item, depth = left.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise refusal("containers in containers without end", f"{DEEPEST} levels", type(value).__name__)
        if isinstance(item, Mapping | tuple | list):
            items = item.values() if isinstance(item, Mapping) else item
            left.extend((own, depth + 1) for own in items)
        else:
            yield item


def anywhere(value: Any, test: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a test of numbers is true of any in a state."""
    return any(_holds(item, test) for item in leaves(value))


def _holds(value: Any, test: Callable[[Tensor], Tensor]) -> bool:
    if isinstance(value, float):
        return bool(test(torch.tensor(value)))
    if not isinstance(value, Tensor):
        return False
    part = own_part(value)
    return (part.is_floating_point() or part.is_complex()) and bool(test(part).any())


def pack(value: Any) -> Any:
    """Return dictionaries, tuples, tensors and plain values only; loads with ``weights_only=True``."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        return {"type": kind, **{field.name: pack(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, tuple):
        return tuple(pack(item) for item in value)
    return _alone(value) if isinstance(value, Tensor) else value


def _alone(x: Tensor) -> Tensor:
    """Return a tensor without the buffer that it came in: torch saves those whole, and refuses views of two dtypes."""
    return x.clone() if x.is_contiguous() and x.untyped_storage().nbytes() > x.nbytes else x


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
    known: dict[str, Any] = {**TYPES, **PerSampleGradients.TYPES, **Sketch.TYPES, **SolveState.TYPES}
    kind = known.get(name) if isinstance(name, str) else None
    values = {key: unpack(item, device) for key, item in packed.items() if key != "type"}
    if kind is None or set(values) != {field.name for field in fields(kind)}:
        raise refusal("an entry cannot be read", f"one of {sorted(known)} with its fields", name)
    for key, wanted in ((entry.name, str(entry.type)) for entry in fields(kind)):
        if wanted in SIMPLE and type(values[key]) not in SIMPLE[wanted]:
            raise refusal(f"{key} of a {name} cannot be read", wanted, values[key])
    return kind(**values)


def separate(value: Any, put: Callable[[str, Tensor], dict[str, Any]], key: str = "") -> Any:
    """Return plain values that JSON can hold.

    Args:
        value: Mappings, sequences, tensors and plain values.
        put: Given the place of a tensor and the tensor, returns what stands for it, under ``TENSOR`` first.
        key: The place of ``value``.
    """
    if isinstance(value, Tensor):
        return put(key, value)
    if isinstance(value, Mapping):
        return {name: separate(item, put, f"{key}/{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [separate(item, put, f"{key}/{k}") for k, item in enumerate(value)]
    return value


def rejoin(plain: Any, get: Callable[[dict[str, Any]], Tensor]) -> Any:
    """Undo ``separate``: ``get`` returns the tensor that a mapping stands for."""
    if isinstance(plain, dict):
        return get(plain) if TENSOR in plain else {name: rejoin(item, get) for name, item in plain.items()}
    return [rejoin(item, get) for item in plain] if isinstance(plain, list) else plain


def to_bytes(plain: Any, multiple: int = 1) -> Tensor:
    """Return plain values as JSON in a tensor of bytes, padded with blanks to a multiple."""
    text = json.dumps(plain).encode()
    return torch.frombuffer(bytearray(text.ljust(-(-len(text) // multiple) * multiple)), dtype=torch.uint8)


def from_bytes(x: Tensor) -> Any:
    """Undo ``to_bytes``."""
    return json.loads(bytes(x.tolist()))
