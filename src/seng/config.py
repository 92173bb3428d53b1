"""Options of the preconditioner, validated once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from math import inf
from numbers import Integral, Real
from typing import Any

from torch import nn

from .errors import OptionError, choose
from .schedules import Schedule, value_at

CHOICES: dict[str, tuple[str, ...]] = {
    "damping_mode": ("relative", "absolute"),
    "scale": ("auto", "gradient", "natural"),
    "curvature_batch": ("previous", "current"),
    "positions": ("sum", "expand"),
    "loss_reduction": ("mean", "sum"),
}

WIRE_DTYPES = ("bfloat16",)

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "power": 1.0,
        "damping_mode": "absolute",
        "scale": "natural",
        "curvature_batch": "current",
        "trust": None,
        "explicit_limit": 700_000,
    },
}

Selector = str | type[nn.Module]


@dataclass(frozen=True)
class Options:
    """Everything that decides how curvature is estimated, refreshed and applied.

    Args:
        damping: lambda, or the multiple of the mean eigenvalue that sets it; float or callable of the step, > 0.
        damping_mode: "relative": lambda_l = damping * trace(K_l) / n. "absolute": lambda_l = damping.
        scale: "gradient": lambda_l^power * d. "natural": d = (F + lambda I)^-power g. "auto": gradient for
            power 1, natural below.
        power: Exponent of (F + lambda I), in (0, 1]. 1 is the natural gradient, 0.5 whitens.
        refresh_every: Steps between refreshes of the curvature, >= 1; int or callable of the step.
        curvature_batch: "previous": precondition with the curvature held before, then take this batch in.
            "current": refresh first.
        trust: Cap on sqrt(g^T (F + lambda I)^-1 g), > 0, or None.
        ema: Weight of the old curvature when a new batch is merged in, in [0, 1).
        estimator: Name in ``seng.planner.CANDIDATES``.
        sketch: Name in ``seng.sketch.SKETCHES``.
        sketch_size: Rows kept by a sketch (of each factor, for implicit layers), >= 1.
        rank: Rank of each sample's low-rank gradient in the implicit estimator, >= 1.
        positions: "sum": one row a sample. "expand": each sampled position is a row.
        memory_budget: Bytes the held curvature may take, or None.
        distributed: Name in ``seng.distributed.STRATEGIES``, or "auto".
        tolerance: Relative error of a direction's coefficients that powers below 1 may make where curvature serves one
            step alone (curvature of the current batch at every step), in [0, 1): Lanczos' method stops there. 0:
            rounding errors only.
        wire_dtype: What samples and directions are rounded to while they travel between ranks: "bfloat16", or None.
        include: Module types or name patterns to precondition; None means all supported.
        exclude: Module types or name patterns to leave out.
        bare_parameters: Name patterns of parameters that no layer has, but that are added to activations, multiplied
            with them or expanded over the batch, such as class tokens and layer scales: these are preconditioned, too.
        loss_reduction: How the loss reduces over samples: "mean" or "sum".
        grad_scaler: torch GradScaler whose scale the captured gradients carry.
        reweight: Linear layers leave their weight gradients out of backward, and step() forms the direction at once
            as a weighted sum over samples: less time and memory. Needs curvature of the current batch at every step;
            gradients of those layers exist after step() only, so clipping them before has no effect.
        gradient_check: Whether a refresh compares the captured samples with ``.grad``, by random projections. Layers
            that disagree keep their plain gradient. False where gradients are changed on purpose before ``step()``.
        preset: "paper" for the settings of the paper, or None.
        seed: Seed of every random draw, >= 0.
        explicit_limit: Parameters of the largest layer that "auto" treats explicitly or exactly whatever the cost;
            larger ones are implicit where that holds less or is less work. None lets costs alone decide. Set by the
            preset.

    Raises:
        OptionError: A value is of the wrong type or out of range.
    """

    damping: Schedule[float] = 0.1
    damping_mode: str = "relative"
    scale: str = "auto"
    power: float = 0.5
    refresh_every: Schedule[int] = 10
    curvature_batch: str = "previous"
    trust: float | None = 1.0
    ema: float = 0.0
    estimator: str = "auto"
    sketch: str = "uniform"
    sketch_size: int = 256
    rank: int = 16
    positions: str = "sum"
    memory_budget: int | None = None
    distributed: str = "auto"
    tolerance: float = 0.0
    wire_dtype: str | None = None
    include: Sequence[Selector] | None = None
    exclude: Sequence[Selector] = ()
    bare_parameters: Sequence[str] = ()
    loss_reduction: str = "mean"
    grad_scaler: Any = None
    reweight: bool = False
    gradient_check: bool = True
    preset: str | None = None
    seed: int = 0
    explicit_limit: int | None = None

    @classmethod
    def build(cls, call: str, given: dict[str, Any], others: Iterable[str] = ()) -> Options:
        """Return validated options; a preset supplies defaults that explicit values override.

        Args:
            call: What errors name as the call at fault.
            given: By name. Numbers of other libraries, such as NumPy's, become Python's.
            others: Further names that the call knows.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                close = get_close_matches(name, [*known, *others], n=1)
                fix = f"Did you mean {close[0]!r}" if close else "Remove it"
                raise OptionError(call, "unknown option", expected="one of " + ", ".join(known), got=name, fix=fix)
        preset = given.get("preset")
        defaults = {} if preset is None else choose(PRESETS, preset, call=call, option="preset")
        options = cls(**{**defaults, **{name: plain(value) for name, value in given.items()}})
        options.validate(call)
        return options

    def validate(self, call: str) -> None:
        """Raise OptionError at the first value that is out of range."""
        for name, low, high, open_ends in _RANGES:
            value = getattr(self, name)
            if not (name == "damping" and callable(value)):
                _require_number(call, name, value, low, high, open_ends)
        for name in _COUNTS:
            value = getattr(self, name)
            absent = name in _OPTIONAL_COUNTS and value is None
            if not absent and not (name == "refresh_every" and callable(value)):
                _require_count(call, name, value, 0 if name == "seed" else 1)
        for name, allowed in CHOICES.items():
            choose(dict.fromkeys(allowed), getattr(self, name), call=call, option=name)
        for name in ("include", "exclude"):
            _require_selectors(call, name, getattr(self, name))
        _require_patterns(call, "bare_parameters", self.bare_parameters)
        _require_scaler(call, self.grad_scaler)
        if self.wire_dtype is not None:
            choose(dict.fromkeys(WIRE_DTYPES), self.wire_dtype, call=call, option="wire_dtype")
        for name in ("reweight", "gradient_check"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(
                    call, f"{name} out of range", expected="True or False", got=getattr(self, name), fix="Pass a bool"
                )
        if self.reweight:
            _require_reweightable(call, self)
        self.require_schedules(0, call)

    def damping_at(self, step: int, call: str = "step()") -> float:
        """Return the option's value at a step.

        Raises:
            OptionError: The schedule failed, or gave a value that is not a positive number.
        """
        if not callable(self.damping):
            return self.damping
        value = scheduled(call, "damping", self.damping, step)
        if not is_number(value) or value <= 0:
            raise OptionError(
                call, "damping schedule out of range", expected="a number > 0", got=value,
                fix=f"Correct the schedule at step {step}",
            )  # fmt: skip
        return value

    def interval_at(self, step: int, call: str = "step()") -> int:
        """Return the steps between refreshes in force at a step.

        Raises:
            OptionError: The schedule failed, or gave a value that is not an integer >= 1.
        """
        if not callable(self.refresh_every):
            return self.refresh_every
        value = scheduled(call, "refresh_every", self.refresh_every, step)
        if not _is_count(value, 1):
            raise OptionError(
                call, "refresh_every schedule out of range", expected="an integer >= 1", got=value,
                fix=f"Correct the schedule at step {step}",
            )  # fmt: skip
        return value

    def serves_once(self, step: int) -> bool:
        """Return whether curvature made at a step serves it alone: the next step refreshes before use."""
        return self.curvature_batch == "current" and self.ema == 0 and self.interval_at(step + 1) == 1

    def require_schedules(self, step: int, call: str = "step()") -> None:
        """Raise OptionError if a schedule is out of range at a step, or at the next one, which is prepared now."""
        self.damping_at(step, call)
        self.interval_at(step, call)
        self.interval_at(step + 1, call)

    @cached_property
    def has_schedules(self) -> bool:
        """Whether an option follows a schedule."""
        return callable(self.damping) or callable(self.refresh_every)

    @cached_property
    def natural(self) -> bool:
        """Whether directions carry the scale of (F + lambda I)^-power g."""
        return self.scale == "natural" or (self.scale == "auto" and self.power < 1)

    def with_(self, **changes: Any) -> Options:
        """Return a copy with some values replaced."""
        return replace(self, **changes)


# name, low, high, which ends are excluded
_RANGES: tuple[tuple[str, float, float, Callable[[float, float, float], bool]], ...] = (
    ("damping", 0.0, inf, lambda v, lo, hi: lo < v < hi),
    ("power", 0.0, 1.0, lambda v, lo, hi: lo < v <= hi),
    ("trust", 0.0, inf, lambda v, lo, hi: lo < v < hi),
    ("ema", 0.0, 1.0, lambda v, lo, hi: lo <= v < hi),
    ("tolerance", 0.0, 1.0, lambda v, lo, hi: lo <= v < hi),
)
_RANGE_TEXT = {
    "damping": "> 0",
    "power": "in (0, 1]",
    "trust": "> 0 or None",
    "ema": "in [0, 1)",
    "tolerance": "in [0, 1)",
}
_COUNTS = ("refresh_every", "sketch_size", "rank", "memory_budget", "seed", "explicit_limit")
_OPTIONAL_COUNTS = ("memory_budget", "explicit_limit")


def plain(value: Any) -> Any:
    """Return a number of another library, such as NumPy's, as Python's own, and anything else as it is."""
    if isinstance(value, bool) or type(value) in (int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def is_number(value: object) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    largest = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def scheduled(call: str, name: str, schedule: Any, step: int) -> Any:
    """Return a schedule's value at a step, numbers of other libraries as Python's.

    Raises:
        OptionError: The schedule failed.
    """
    try:
        return plain(value_at(schedule, step))
    except Exception as error:
        raise OptionError(
            call, f"{name} schedule failed", expected="a value at every step", got=type(error).__name__,
            fix=f"Correct the schedule at step {step}: {error}",
        ) from error  # fmt: skip


def _require_number(call: str, name: str, value: Any, low: float, high: float, inside: Callable[..., bool]) -> None:
    if name == "trust" and value is None:
        return
    if not is_number(value) or not inside(value, low, high):
        raise OptionError(
            call, f"{name} out of range", expected=f"a number {_RANGE_TEXT[name]}", got=value,
            fix=f"Pass {name} in range",
        )  # fmt: skip


def _require_count(call: str, name: str, value: Any, least: int) -> None:
    if not _is_count(value, least):
        raise OptionError(
            call, f"{name} out of range", expected=f"an integer >= {least}, below 2^63", got=value,
            fix=f"Pass {name} in range",
        )  # fmt: skip


def _require_scaler(call: str, scaler: Any) -> None:
    if scaler is None:
        return
    try:
        scale = plain(scaler.get_scale())
    except Exception:
        scale = None
    if scale is None or not is_number(scale) or scale <= 0:
        raise OptionError(
            call, "grad_scaler out of range", expected="a torch.amp.GradScaler with a scale > 0, or None",
            got=scaler if scale is None else scale, fix="Pass the scaler that scales the loss",
        )  # fmt: skip


def _require_reweightable(call: str, options: Options) -> None:
    needs = {
        "curvature_batch": "current", "refresh_every": 1, "estimator": "exact", "positions": "sum", "ema": 0,
        "grad_scaler": None, "distributed": "none",
    }  # fmt: skip
    for name, needed in needs.items():
        got = getattr(options, name)
        if got != needed:
            raise OptionError(
                call, f"reweight does not go with this {name}", expected=f"{name}={needed!r}", got=got,
                fix=f"Pass {name}={needed!r}, or reweight=False",
            )  # fmt: skip


def _require_patterns(call: str, name: str, value: Any) -> None:
    good = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
    if not good:
        raise OptionError(
            call, f"{name} out of range", expected="a list of name patterns", got=value,
            fix="Pass for example ['*.cls_token', '*.gamma']",
        )  # fmt: skip


def _require_selectors(call: str, name: str, value: Any) -> None:
    if value is None and name == "include":
        return
    good = isinstance(value, Sequence) and not isinstance(value, str)
    good = good and all(isinstance(v, str) or (isinstance(v, type) and issubclass(v, nn.Module)) for v in value or ())
    if not good:
        raise OptionError(
            call, f"{name} out of range", expected="a list of module types or name patterns", got=value,
            fix="Pass for example [nn.Linear, 'encoder.*']",
        )  # fmt: skip
