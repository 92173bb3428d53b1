"""Options: defaults, presets, and an error for every value out of range."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import seng
from seng import (
    SENG,
    Auto,
    DenseThenSparse,
    Distributed,
    Exact,
    Exponential,
    Global,
    Local,
    LowRank,
    Options,
    PaperCode,
    Preconditioner,
    Sharded,
    Sketched,
    Truncated,
    plan,
    verify,
)
from seng.config import ARGUMENTS, HINTS, PRESETS, OptionKeywords
from seng.distributed import STRATEGIES
from seng.errors import ModelError, OptionError
from seng.estimators import ESTIMATORS, Estimator

TOO_LARGE = 10**400
NUMBERS = ("0.1", None, True, nan, inf, -inf, TOO_LARGE, -TOO_LARGE, [0.1], 1j, torch.tensor(0.1), np.float32("nan"))
NO_COUNTS = (0, -1, 2.0, 2.5, "3", True, nan, [2], TOO_LARGE, 10**5000, 2**63, torch.tensor(2), np.float64(2))
NO_NAMES = ("", "RELATIVE", None, 3, ["mean"])
NO_LISTS = ("encoder", nn.Linear, [3], [nn.Linear(1, 1)], 7, [None])


class Scaler:
    """Scales by what it is told."""

    def __init__(self, scale: Any):
        self._scale = scale

    def get_scale(self) -> Any:
        return self._scale


BAD: dict[str, tuple[Any, ...]] = {
    "damping": (*NUMBERS, 0, 0.0, -0.1, lambda step: TOO_LARGE, lambda step: "much", lambda: 0.1, dict, nn.ReLU()),
    "damping_mode": NO_NAMES,
    "scale": NO_NAMES,
    "power": (*NUMBERS, 0, -0.5, 1.0001, lambda step: 0.5),
    "refresh_every": (*NO_COUNTS, None, lambda step: TOO_LARGE, lambda step: 0, lambda step: step, lambda: 2, list),
    "curvature_samples": (*NO_COUNTS, 0, 1, 0.0, -0.5, 1.5, nan, inf, lambda step: 8),
    "curvature_batch": NO_NAMES,
    "trust": ("1", True, nan, inf, TOO_LARGE, 0, -1.0, lambda step: 1.0),
    "ema": (*NUMBERS, -0.1, 1.0, 1.5, lambda step: 0.5),
    "estimator": ("exakt", None, 3, Exact, nn.Linear(1, 1)),
    "positions": NO_NAMES,
    "memory_budget": (*NO_COUNTS, lambda step: 3),
    "distributed": ("globe", None, 3, Local, nn.Linear(1, 1)),
    "include": NO_LISTS,
    "bare_parameters": ("*", [1], [nn.Linear], 3, None),
    "exclude": (*NO_LISTS, None),
    "loss_reduction": NO_NAMES,
    "grad_scaler": (2.0, "scaler", object(), torch.amp.GradScaler, *map(Scaler, (0.0, -1.0, nan, inf, None, "2"))),
    "preset": ("papers", 3, True),
    "seed": (-1, 1.0, None, "0", True, lambda step: 3, 2**63, TOO_LARGE),
}
# arguments of estimators and strategies, which may also be passed beside their names
BAD_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "sketch": ("gausian", None, 3),
    "sketch_size": (*NO_COUNTS, None, lambda step: 3),
    "rank": (*NO_COUNTS, None, lambda step: 3),
    "explicit_limit": (*NO_COUNTS, lambda step: 3),
    "tolerance": (*NUMBERS, -0.1, 1.0, 1.5, lambda step: 0.5),
    "wire_dtype": ("float8", 3, True),
}
CASES = [(name, value) for name, values in (BAD | BAD_ARGUMENTS).items() for value in values]


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))


def test_every_option_has_bad_values_here() -> None:
    flags = {field.name for field in fields(Options) if field.type == "bool"}
    assert set(BAD) == {field.name for field in fields(Options)} - flags
    assert set(BAD_ARGUMENTS) == set(ARGUMENTS)


def test_an_unusable_trust_cap_is_told_of_auto() -> None:
    with pytest.raises(OptionError, match=r"expected a number > 0, 'auto' or None, got 'AUTO'"):
        Options.build("SENG()", {"trust": "AUTO"})


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}-{k}" for k, (name, _) in enumerate(CASES)])
def test_option_out_of_range_is_refused(name: str, value: Any) -> None:
    model = small_model()
    with pytest.raises(OptionError, match=rf"^\w+\(\): .*\b{name}\b.*: expected .*, got .*\.$"):
        SENG(model, **{name: value})
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("dampng", "damping"), ("refresh", "refresh_every"), ("sketchsize", "sketch_size"), ("qqq", None), ("", None)],
)
def test_unknown_option_is_refused_with_the_closest_name(name: str, suggestion: str | None) -> None:
    fix = f"Did you mean '{suggestion}'" if suggestion else "Remove it"
    calls: list[Callable[..., object]] = [lambda model, **options: SENG(model, **options), Preconditioner]
    for call in calls:
        with pytest.raises(OptionError, match=rf"unknown option: expected one of damping, .*, got '{name}'\. {fix}\."):
            call(small_model(), **{name: 1})


@pytest.mark.parametrize(
    ("option", "given", "closest"),
    [
        ("estimator", "explicite", "explicit"),
        ("sketch", "gauss", "gaussian"),
        ("distributed", "locale", "local"),
        ("damping_mode", "relativ", "relative"),
        ("preset", "papier", "paper"),
    ],
)
def test_unknown_name_is_refused_with_the_closest(option: str, given: str, closest: str) -> None:
    with pytest.raises(
        OptionError, match=rf"unknown {option}: expected '.*, got '{given}'\. Did you mean '{closest}'\."
    ):
        Preconditioner(small_model(), **{option: given})  # type: ignore[arg-type]


CALLS: dict[str, Callable[..., object]] = {
    "plan()": lambda model, **options: plan(model, torch.zeros(2, 3), **options),
    "verify()": lambda model, **options: verify(model, lambda: model(torch.zeros(2, 3)).sum(), **options),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("option", "value"), [("rank", 0), ("dampng", 1), ("scale", "loud"), ("include", [])])
def test_other_calls_check_the_same_options(call: str, option: str, value: Any) -> None:
    with pytest.raises((OptionError, ModelError), match=rf"^{call[:-2]}\(\): .*: expected .*, got .*\."):
        CALLS[call](small_model(), **{option: value})


@pytest.mark.parametrize(("option", "value"), [("estimator", "exakt"), ("sketch", "gausian")])
def test_plan_knows_the_names_of_the_tables(option: str, value: str) -> None:
    with pytest.raises(OptionError, match=rf"^plan\(\): unknown {option}: .* Did you mean"):
        CALLS["plan()"](small_model(), **{option: value})


def test_paper_code_wants_the_natural_gradient() -> None:
    for call in (SENG, CALLS["plan()"]):
        with pytest.raises(
            OptionError, match=r"paper-code knows the natural gradient only: expected power=1\.0, got 0\.5"
        ):
            call(small_model(), estimator="paper-code")


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("selector", ["encoder.*", nn.Conv2d])
def test_selector_without_a_match_is_refused(option: str, selector: Any) -> None:
    options: dict[str, Any] = {option: [selector]}
    with pytest.raises(OptionError, match=f"a selector of {option} matches no module"):
        Preconditioner(small_model(), **options)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    return given


@pytest.mark.parametrize("name", ["call", "self", "options", "kwargs", "_layout"])
def test_names_of_the_inside_are_no_options(name: str) -> None:
    model = small_model()
    with pytest.raises(OptionError, match=rf"^SENG\(\): unknown option: expected one of damping, .*, got '{name}'"):
        SENG(model, **_options({name: 1}))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("given", "closest"), [("momentun", "momentum"), ("weight_decy", "weight_decay")])
def test_settings_of_the_base_are_suggested_too(given: str, closest: str) -> None:
    with pytest.raises(OptionError, match=rf"unknown option: .*, got '{given}'\. Did you mean '{closest}'\."):
        SENG(small_model(), **_options({given: 0.1}))


@pytest.mark.parametrize("real", [np.float16, np.float32, np.float64, Fraction])
@pytest.mark.parametrize("integer", [np.int8, np.uint64, np.int64])
def test_numbers_of_other_libraries_become_plain_ones(real: Any, integer: Any) -> None:
    numbers = {"damping": real(0.5), "trust": real(2), "ema": real(0.25), "seed": integer(4)}
    options = Options.build("f()", numbers | {"refresh_every": lambda step: integer(2)})
    assert {name: getattr(options, name) for name in numbers} == numbers
    assert [type(getattr(options, name)) for name in numbers] == [float, float, float, int]
    estimators = Options.build("f()", {"rank": integer(3)}).estimator, LowRank(rank=integer(3))
    assert [(own.rank, type(own.rank)) for own in estimators] == [(3, int)] * 2  # type: ignore[attr-defined]
    assert type(options.interval_at(0)) is int
    optimizer = SENG(small_model(), lr=real(0.5), momentum=real(0.25), weight_decay=real(0))
    assert [type(optimizer.param_groups[0][name]) for name in ("lr", "momentum", "weight_decay")] == [float] * 3


def test_schedule_that_fails_is_named_with_its_cause() -> None:
    def schedule(step: int) -> float:
        return 1 / (3 - step)

    options = Options.build("f()", {"damping": schedule})
    with pytest.raises(OptionError, match=r"damping schedule failed: .*, got 'ZeroDivisionError'\. .*at step 3: ") as e:
        options.damping_at(3)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


GOOD: dict[str, tuple[Any, ...]] = {
    "damping": (1, 1e-8, 1e8, Exponential(1.0, 0.9), lambda step: 0.1),
    "power": (1, 1.0, 1e-3),
    "refresh_every": (1, 10_000, DenseThenSparse(), lambda step: 2),
    "trust": (None, 1e-3, 5),
    "ema": (0, 0.0, 0.999),
    "memory_budget": (None, 1),
    "include": (None, [], ["0"], [nn.Linear], ("0", nn.Linear)),
    "exclude": ((), ["0"], [nn.Linear]),
    "grad_scaler": (None, torch.amp.GradScaler("cpu", enabled=False)),
    "preset": (None, "paper"),
    "seed": (0, 2**62, 2**63 - 1),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_option_in_range_is_taken(name: str, value: Any) -> None:
    assert getattr(Options.build("f()", {name: value}), name) is value


def test_defaults_are_documented_values() -> None:
    options = Options.build("f()", {})
    assert options == Options()
    assert (options.damping, options.damping_mode, options.power, options.refresh_every) == (0.1, "relative", 0.5, 10)
    assert (options.curvature_batch, options.trust, options.ema, options.seed) == ("previous", "auto", 0.0, 0)
    assert options.estimator == Auto(rank=16, rows=256, sketch="uniform", explicit_limit=None, tolerance=0.0)
    assert (options.scale, options.distributed) == ("auto", Distributed("auto", wire_dtype=None))
    assert (options.positions, options.loss_reduction) == ("sum", "mean")


def test_preset_is_the_paper_and_gives_way_to_explicit_values() -> None:
    paper = Options.build("f()", {"preset": "paper"})
    assert (paper.power, paper.damping_mode, paper.natural, paper.curvature_batch) == (1.0, "absolute", True, "current")
    assert paper.trust is None
    assert paper.estimator == Auto(explicit_limit=700_000)
    mixed = Options.build("f()", {"preset": "paper", "power": 0.5, "trust": 2.0})
    assert (mixed.power, mixed.trust, mixed.damping_mode) == (0.5, 2.0, "absolute")


# -- estimators and strategies as objects ------------------------------------------------------------------------------


def built(**options: Any) -> Options:
    return Options.build("f()", options)


@pytest.mark.parametrize(
    ("given", "estimator"),
    [
        ({"estimator": "auto"}, Auto()),
        ({"estimator": "exact", "tolerance": 0.2}, Exact(tolerance=0.2)),
        ({"estimator": "explicit", "sketch": "gaussian", "sketch_size": 7}, Sketched("gaussian", rows=7)),
        ({"estimator": "implicit", "rank": 3, "sketch_size": 7}, LowRank(3, rows=7)),
        ({"estimator": "truncated"}, Truncated()),
        ({"estimator": "paper-code", "power": 1.0, "explicit_limit": 50}, PaperCode(explicit_limit=50)),
        ({"rank": 3, "explicit_limit": 50}, Auto(3, explicit_limit=50)),
        ({"preset": "paper", "rank": 3}, Auto(3, explicit_limit=700_000)),
        ({"preset": "paper", "estimator": "auto"}, Auto(explicit_limit=700_000)),
        ({"preset": "paper", "estimator": "implicit"}, LowRank()),
        ({"preset": "paper", "estimator": Auto()}, Auto()),
    ],
)
def test_names_are_short_for_objects(given: dict[str, Any], estimator: Estimator) -> None:
    assert built(**given).estimator == estimator


def test_arguments_that_an_estimator_lacks_have_no_effect_beside_its_name() -> None:
    settings = {"sketch": "uniform", "sketch_size": 256, "rank": 16, "explicit_limit": None, "tolerance": 0.0}
    for name, kind in ESTIMATORS.items():
        assert built(estimator=name, power=1.0, **settings).estimator == kind()
    assert built(estimator="exact", rank=3).estimator == Exact()


def test_strategies_take_arguments_as_objects_or_beside_their_names() -> None:
    for name, kind in (("local", Local), ("global", Global), ("sharded", Sharded)):
        asked = built(distributed=name, wire_dtype="bfloat16").distributed
        assert (asked.name, asked.wire_dtype) == (kind("bfloat16").name, kind("bfloat16").wire_dtype)
        assert built(distributed=kind("bfloat16")).distributed == kind("bfloat16")


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"estimator": LowRank(), "rank": 8}, r"estimator=seng\.LowRank\(rank=8\)"),
        ({"estimator": Sketched(), "sketch_size": 8}, r"estimator=seng\.Sketched\(rows=8\)"),
        ({"distributed": Local(), "wire_dtype": "bfloat16"}, r"distributed=seng\.Local\(wire_dtype='bfloat16'\)"),
    ],
)
def test_argument_beside_an_object_is_refused_with_the_spelling(given: dict[str, Any], fix: str) -> None:
    with pytest.raises(OptionError, match=rf"^f\(\): \w+ does not go with this \w+: .*Pass {fix}\.$"):
        built(**given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(rank=0), r"^LowRank\(\): rank out of range: expected an integer >= 1, below 2\^63, got 0\."),
        (lambda: Sketched("gausian"), r"^Sketched\(\): unknown sketch: .* Did you mean 'gaussian'\.$"),
        (lambda: Sketched(rows=2.5), r"^Sketched\(\): rows out of range"),  # type: ignore[arg-type]
        (
            lambda: Exact(tolerance=1.0),
            r"^Exact\(\): tolerance out of range: expected a number in \[0, 1\), got 1",
        ),
        (lambda: Truncated(tolerance=-1.0), r"^Truncated\(\): tolerance out of range"),
        (lambda: PaperCode(explicit_limit=0), r"^PaperCode\(\): explicit_limit out of range"),
        (lambda: Auto(rank="3"), r"^Auto\(\): rank out of range"),  # type: ignore[arg-type]
        (lambda: Local("float8"), r"^Local\(\): unknown wire_dtype: expected 'bfloat16', got 'float8'\."),
    ],
)
def test_argument_of_an_object_is_checked_when_it_is_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


# -- options as typed keywords -----------------------------------------------------------------------------------------

CALLABLES: list[Callable[..., object]] = [SENG, Preconditioner, plan]


def test_keywords_are_the_options() -> None:
    assert list(OptionKeywords.__annotations__) == [field.name for field in fields(Options)]


def test_keywords_admit_the_names_of_the_tables() -> None:
    for option, names in (("estimator", set(ESTIMATORS)), ("distributed", {"auto", *STRATEGIES})):
        literals = [hint for hint in typing.get_args(HINTS[option]) if typing.get_origin(hint) is typing.Literal]
        assert {name for literal in literals for name in typing.get_args(literal)} == names
    assert set(PRESETS) <= {name for hint in typing.get_args(HINTS["preset"]) for name in typing.get_args(hint)}


@pytest.mark.parametrize("call", CALLABLES)
def test_signature_names_every_option_with_its_default(call: Callable[..., object]) -> None:
    parameters = inspect.signature(call).parameters
    assert {field.name: field.default for field in fields(Options)} == {
        name: parameter.default
        for name, parameter in parameters.items()
        if name in OptionKeywords.__annotations__ and parameter.kind is parameter.KEYWORD_ONLY
    }
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


GOOD_CALLS = """
import seng
from torch import nn

model = nn.Linear(2, 2)
seng.SENG(model, lr=0.1, damping=0.3, estimator="exact", distributed=seng.Local(wire_dtype="bfloat16"))
seng.Preconditioner(model, estimator=seng.LowRank(rank=8, rows=64), include=[nn.Linear], refresh_every=lambda step: 3)
"""
BAD_CALLS = (
    "seng.SENG(model, dampng=0.3)",
    "seng.SENG(model, damping='much')",
    "seng.SENG(model, estimator='exakt')",
    "seng.Preconditioner(model, rfresh_every=3)",
    "seng.Preconditioner(model, estimator=seng.LowRank(rnk=8))",
)


@pytest.mark.slow
def test_type_checker_takes_good_options_and_refuses_wrong_ones(tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text(GOOD_CALLS + "\n".join(BAD_CALLS) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(seng.__file__).parents[1])}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(Path(seng.__file__).parents[1])]}))
    found = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout)
    lines = {entry["range"]["start"]["line"] for entry in found["generalDiagnostics"] if entry["severity"] == "error"}
    first = GOOD_CALLS.count("\n")
    assert lines == set(range(first, first + len(BAD_CALLS)))


@pytest.mark.parametrize(
    ("scale", "power", "natural"),
    [("auto", 1.0, False), ("auto", 0.5, True), ("natural", 1.0, True), ("gradient", 0.5, False)],
)
def test_automatic_scale_is_natural_below_power_one(scale: str, power: float, natural: bool) -> None:
    assert Options.build("f()", {"scale": scale, "power": power}).natural is natural


@pytest.mark.parametrize("value", [0.0, -1.0, nan, inf, "0.1", None, True])
def test_damping_schedule_out_of_range_is_refused_with_its_step(value: Any) -> None:
    options = Options.build("f()", {"damping": lambda step: value if step == 7 else 0.1})
    assert options.damping_at(6) == 0.1
    with pytest.raises(OptionError, match=r"damping schedule out of range: expected a number > 0, .*at step 7\."):
        options.damping_at(7)


@pytest.mark.parametrize("value", [0, -1, 1.0, nan, "1", None, True])
def test_refresh_schedule_out_of_range_is_refused_with_its_step(value: Any) -> None:
    options = Options.build("f()", {"refresh_every": lambda step: value if step == 7 else 3})
    assert options.interval_at(6) == 3
    with pytest.raises(OptionError, match=r"refresh_every schedule out of range: expected an integer >= 1.* step 7\."):
        options.interval_at(7)
    with pytest.raises(OptionError, match=r"refresh_every schedule out of range"):
        options.require_schedules(6)  # the next step is prepared at the end of this one


def test_copies_change_what_is_asked() -> None:
    assert Options().with_(seed=3) == Options(seed=3)
