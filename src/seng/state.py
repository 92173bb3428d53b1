"""State as tensors and plain values: frozen dataclasses of known types to dictionaries and back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from .curvature import Curvature
from .errors import StateError
from .factors import FACTOR_TYPES
from .sketch import SKETCH_TYPES
from .solve import SOLVE_TYPES

TYPES: dict[str, type] = {**FACTOR_TYPES, **SKETCH_TYPES, **SOLVE_TYPES, "Curvature": Curvature}
VERSION = 1


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
    kind = TYPES.get(packed.get("type", ""))
    values = {key: unpack(item, device) for key, item in packed.items() if key != "type"}
    if kind is None or set(values) != {field.name for field in fields(kind)}:
        raise StateError(
            "load_state_dict()", "an entry cannot be read", expected=f"one of {sorted(TYPES)} with its fields",
            got=packed.get("type"), fix="Load a state that this version of seng saved",
        )  # fmt: skip
    return kind(**values)
