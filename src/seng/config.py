"""Options of the preconditioner: their types, defaults and meaning, validated once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from inspect import Parameter, signature
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from torch import nn
from torch.amp.grad_scaler import GradScaler

from .checks import is_count, is_number, plain, require, require_count, require_number
from .distribution import Distributed
from .errors import OptionError, choose
from .estimators import ESTIMATORS, Auto, Estimator, require_argument
from .schedules import Schedule, scheduled

F = TypeVar("F", bound=Callable[..., Any])

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "power": 1.0,
        "damping_mode": "absolute",
        "scale": "natural",
        "curvature_batch": "current",
        "trust": None,
        "estimator": Auto(explicit_limit=700_000),
    },
}

Selector = str | type[nn.Module]


class OptionKeywords(TypedDict, total=False):
    """The options as keywords of ``seng.SENG``, for editors and type checkers; ``Options`` describes them."""

    damping: Schedule[float]
    damping_mode: Literal["relative", "absolute"]
    scale: Literal["auto", "gradient", "natural"]
    power: float
    refresh_every: Schedule[int]
    curvature_samples: float | None
    curvature_batch: Literal["previous", "current"]
    trust: float | Literal["auto"] | None
    ema: float
    estimator: Estimator | Literal["auto", "exact", "explicit", "implicit", "truncated", "paper-code"]
    positions: Literal["sum", "expand"]
    memory_budget: int | None
    distributed: Distributed | Literal["auto", "none", "local", "global", "sharded"]
    include: Sequence[Selector] | None
    exclude: Sequence[Selector]
    bare_parameters: Sequence[str]
    loss_reduction: Literal["mean", "sum"]
    grad_scaler: GradScaler | None
    reweight: bool
    gradient_check: bool
    preset: Literal["paper"] | None
    seed: int


HINTS = get_type_hints(OptionKeywords)
CHOICES = {name: get_args(hint) for name, hint in HINTS.items() if get_origin(hint) is Literal}


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
        curvature_samples: How many samples of a batch make curvature: an integer >= 2, a share as a float in (0, 1], or
            None for all. They are drawn anew at every refresh, the same for all layers; each rank draws from its own.
        curvature_batch: "previous": precondition with the curvature held before, then take this batch in.
            "current": refresh first.
        trust: Cap on sqrt(g^T (F + lambda I)^-1 g), > 0, or None. "auto": 1, and for directions of natural scale
            1.5 |g| / G within [1/4, 1], where G is the block's largest |g| of about the last thousand steps.
        ema: Weight of the old curvature when a new batch is merged in, in [0, 1).
        estimator: How curvature is estimated: ``seng.Auto``, ``Exact``, ``Sketched``, ``LowRank``, ``Truncated`` or
            ``PaperCode`` with its arguments, or for its defaults a name in ``seng.estimators.ESTIMATORS``.
        positions: "sum": one row a sample. "expand": each sampled position is a row.
        memory_budget: Bytes the held curvature may take, or None.
        distributed: What ranks do together: ``seng.Local``, ``Global``, ``Sharded`` or ``Distributed`` with its
            arguments, or "auto", "none" or another name in ``seng.distributed.STRATEGIES``.
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

    Raises:
        OptionError: A value is of the wrong type or out of range.
    """

    damping: Schedule[float] = 0.1
    damping_mode: str = "relative"
    scale: str = "auto"
    power: float = 0.5
    refresh_every: Schedule[int] = 10
    curvature_samples: float | None = None
    curvature_batch: str = "previous"
    trust: float | Literal["auto"] | None = "auto"
    ema: float = 0.0
    estimator: Estimator = Auto()  # noqa: RUF009 - frozen
    positions: str = "sum"
    memory_budget: int | None = None
    distributed: Distributed = Distributed()  # noqa: RUF009 - frozen
    include: Sequence[Selector] | None = None
    exclude: Sequence[Selector] = ()
    bare_parameters: Sequence[str] = ()
    loss_reduction: str = "mean"
    grad_scaler: GradScaler | None = None
    reweight: bool = False
    gradient_check: bool = True
    preset: str | None = None
    seed: int = 0

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
            if name not in known and name not in ARGUMENTS:
                close = get_close_matches(name, [*known, *ARGUMENTS, *others], n=1)
                fix = f"Did you mean {close[0]!r}" if close else "Remove it"
                raise OptionError(call, "unknown option", expected="one of " + ", ".join(known), got=name, fix=fix)
        preset = given.get("preset")
        defaults = {} if preset is None else choose(PRESETS, preset, call=call, option="preset")
        values = {name: plain(value) for name, value in given.items()}
        objects = {"estimator": _estimator(call, values, defaults), "distributed": _distributed(call, values)}
        options = cls(**{**defaults, **{k: v for k, v in values.items() if k not in ARGUMENTS}, **objects})
        options.validate(call)
        return options

    def validate(self, call: str) -> None:
        """Raise OptionError at the first value that is out of range."""
        if not callable(self.damping):
            require_number(call, "damping", self.damping, "> 0")
        require_number(call, "power", self.power, "in (0, 1]")
        good = self.trust is None or self.trust == "auto" or (is_number(self.trust) and self.trust > 0)
        require(call, "trust", self.trust, good, "a number > 0, 'auto' or None")
        require_number(call, "ema", self.ema, "in [0, 1)")
        if not callable(self.refresh_every):
            require_count(call, "refresh_every", self.refresh_every)
        require_count(call, "memory_budget", self.memory_budget, optional=True)
        require_count(call, "seed", self.seed, least=0)
        _require_samples(call, self.curvature_samples)
        for name, allowed in CHOICES.items():
            choose(dict.fromkeys(allowed), getattr(self, name), call=call, option=name)
        for name in ("include", "exclude"):
            _require_selectors(call, name, getattr(self, name))
        _require_patterns(call, "bare_parameters", self.bare_parameters)
        _require_scaler(call, self.grad_scaler)
        for name in ("reweight", "gradient_check"):
            value = getattr(self, name)
            require(call, name, value, isinstance(value, bool), "True or False", "Pass a bool")
        if self.estimator.natural_only and self.power != 1.0:
            raise OptionError(
                call, f"{self.estimator.name} knows the natural gradient only", expected="power=1.0", got=self.power,
                fix="Pass power=1.0 or preset='paper'",
            )  # fmt: skip
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
        good = is_number(value) and value > 0
        require(call, "damping schedule", value, good, "a number > 0", f"Correct the schedule at step {step}")
        return value

    def interval_at(self, step: int, call: str = "step()") -> int:
        """Return the steps between refreshes in force at a step.

        Raises:
            OptionError: The schedule failed, or gave a value that is not an integer >= 1.
        """
        if not callable(self.refresh_every):
            return self.refresh_every
        value = scheduled(call, "refresh_every", self.refresh_every, step)
        fix = f"Correct the schedule at step {step}"
        require(call, "refresh_every schedule", value, is_count(value), "an integer >= 1", fix)
        return value

    def serves_once(self, step: int) -> bool:
        """Return whether curvature made at a step serves it alone: the next step refreshes before use."""
        return self.curvature_batch == "current" and self.ema == 0 and self.interval_at(step + 1) == 1

    def require_schedules(self, step: int, call: str = "step()") -> None:
        """Raise OptionError if a schedule is out of range at a step, or at the next one, which is prepared now."""
        self.damping_at(step, call)
        self.interval_at(step, call)
        self.interval_at(step + 1, call)

    @property
    def expanded(self) -> int | None:
        """How many positions are kept, each a sample; None where positions are summed."""
        return self.estimator.rows if self.positions == "expand" else None

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


# former options, as they may still be passed beside a name: option, its argument, and the default
ARGUMENTS: dict[str, tuple[str, str, Any]] = {
    "sketch": ("estimator", "sketch", "uniform"),
    "sketch_size": ("estimator", "rows", 256),
    "rank": ("estimator", "rank", 16),
    "explicit_limit": ("estimator", "explicit_limit", None),
    "tolerance": ("estimator", "tolerance", 0.0),
    "wire_dtype": ("distributed", "wire_dtype", None),
}


def _estimator(call: str, given: Mapping[str, Any], preset: Mapping[str, Any]) -> Estimator:
    """Return the estimator asked for, by name or as it is, else the preset's or the default one."""
    asked, usual = given.get("estimator", "auto"), preset.get("estimator", Auto())
    arguments = _arguments(call, "estimator", asked, given)
    if isinstance(asked, Estimator):
        return asked
    kind = choose(ESTIMATORS, asked, call=call, option="estimator")
    chosen = usual if isinstance(usual, kind) else kind()
    taken = signature(kind).parameters
    return replace(chosen, **{k: v for k, v in arguments.items() if k in taken})  # type: ignore[type-var]


def _distributed(call: str, given: Mapping[str, Any]) -> Distributed:
    """Return the strategy asked for, by name or as it is."""
    asked = given.get("distributed", "auto")
    arguments = _arguments(call, "distributed", asked, given)
    return asked if isinstance(asked, Distributed) else Distributed(asked, **arguments)


def _arguments(call: str, option: str, asked: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that former options give to what an option names, those that are not at their default.

    Raises:
        OptionError: One is out of range, or stands beside an object, which has arguments of its own.
    """
    found = {}
    for name, (owner, argument, default) in ARGUMENTS.items():
        if owner != option or name not in given:
            continue
        require_argument(call, argument, given[name], name)
        if not isinstance(asked, str):
            raise OptionError(
                call, f"{name} does not go with this {option}", expected=f"{argument} as its argument",
                got=given[name], fix=f"Pass {option}=seng.{type(asked).__name__}({argument}={given[name]!r})",
            )  # fmt: skip
        if given[name] != default:
            found[argument] = given[name]
    return found


def shows_options(function: F) -> F:
    """Name the options in the signature of a function that takes them as keywords, for ``help`` and notebooks."""
    whole = signature(function)
    own = [parameter for parameter in whole.parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    named = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=HINTS[field.name])
        for field in fields(Options)
    ]
    function.__signature__ = whole.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    return function


def _require_samples(call: str, value: Any) -> None:
    if isinstance(value, float):
        require_number(call, "curvature_samples", value, "in (0, 1]")
    else:
        require_count(call, "curvature_samples", value, least=2, optional=True)


def _require_scaler(call: str, scaler: Any) -> None:
    if scaler is None:
        return
    try:
        scale = plain(scaler.get_scale())
    except Exception:
        scale = None
    good, got = scale is not None and is_number(scale) and scale > 0, scaler if scale is None else scale
    expected = "a torch.amp.GradScaler with a scale > 0, or None"
    require(call, "grad_scaler", got, good, expected, "Pass the scaler that scales the loss")


def _require_reweightable(call: str, options: Options) -> None:
    needs = {"curvature_batch": "current", "refresh_every": 1, "positions": "sum", "ema": 0, "grad_scaler": None}
    needs |= {"curvature_samples": None}
    good = {name: getattr(options, name) == needed for name, needed in needs.items()}
    good |= {"estimator": options.estimator.exact, "distributed": options.distributed.alone}
    for name, needed in {**needs, "estimator": "exact", "distributed": "none"}.items():
        if not good[name]:
            raise OptionError(
                call, f"reweight does not go with this {name}", expected=f"{name}={needed!r}",
                got=getattr(options, name), fix=f"Pass {name}={needed!r}, or reweight=False",
            )  # fmt: skip


def _require_patterns(call: str, name: str, value: Any) -> None:
    good = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
    require(call, name, value, good, "a list of name patterns", "Pass for example ['*.cls_token', '*.gamma']")


def _require_selectors(call: str, name: str, value: Any) -> None:
    if value is None and name == "include":
        return
    good = isinstance(value, Sequence) and not isinstance(value, str)
    good = good and all(isinstance(v, str) or (isinstance(v, type) and issubclass(v, nn.Module)) for v in value or ())
    expected = "a list of module types or name patterns"
    require(call, name, value, good, expected, "Pass for example [nn.Linear, 'encoder.*']")
