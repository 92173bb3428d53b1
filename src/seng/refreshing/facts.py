"""What must be alike on all ranks, told by name, so that a difference can be named, too."""

from __future__ import annotations

from dataclasses import fields
from hashlib import blake2b

from ..config import Options
from ..distribution import Distributed
from ..estimators import Estimator


class Facts:
    """Options, model and place in the run.

    Args:
        options: Of this rank.
        model: The shapes of its parameters.
    """

    def __init__(self, options: Options, model: object):
        digest = blake2b(repr(model).encode(), digest_size=8).hexdigest()
        fixed = {field.name: told(getattr(options, field.name)) for field in fields(options)}
        self._fixed = {**fixed, "model": digest}

    def at(self, options: Options, step: int, **position: object) -> dict[str, str]:
        """Return all facts of a step; schedules are told by their values."""
        values = {"damping": options.damping_at(step), "refresh_every": options.interval_at(step), "seed": options.seed}
        changing = {**values, "step": step, **position}
        return {"call": "step()"} | self._fixed | {name: str(value) for name, value in changing.items()}


def told(value: object) -> str:
    """Return a value without what differs between processes, such as addresses."""
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, list | tuple | set | frozenset):
        return str([told(item) for item in value])
    plain = value is None or isinstance(value, str | int | float | bool | Estimator | Distributed)
    return repr(value) if plain else type(value).__qualname__
