"""Errors name the call, the problem, what was expected, what came, where, and the remedy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seng import errors
from seng.errors import LONGEST, OptionError, SengError, choose, shown

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SengError)]


def make(kind: type[SengError], layer: str | None = "encoder.0") -> SengError:
    return kind("SENG()", "rank out of range", expected="an integer >= 1", got=0, layer=layer, fix="Pass more")


@pytest.mark.parametrize("kind", KINDS)
def test_errors_have_one_form(kind: type[SengError]) -> None:
    error = make(kind)
    assert isinstance(error, ValueError)
    assert str(error) == "SENG(): rank out of range: expected an integer >= 1, got 0 at layer encoder.0. Pass more."
    assert str(make(kind, None)) == "SENG(): rank out of range: expected an integer >= 1, got 0. Pass more."
    assert (error.call, error.problem, error.expected, error.got) == (
        "SENG()",
        "rank out of range",
        "an integer >= 1",
        0,
    )
    assert (error.layer, error.fix) == ("encoder.0", "Pass more")


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_processes(kind: type[SengError]) -> None:
    again = pickle.loads(pickle.dumps(make(kind)))
    assert type(again) is kind
    assert str(again) == str(make(kind))
    assert again.layer == "encoder.0"


def test_choose_returns_the_entry() -> None:
    assert choose({"a": 1, "b": 2}, "b", call="f()", option="letter") == 2


@pytest.mark.parametrize(("given", "fix"), [("unifrom", "Did you mean 'uniform'"), ("zzz", "Choose one of the names")])
def test_choose_lists_the_names_and_the_closest(given: str, fix: str) -> None:
    table = {"uniform": 1, "gaussian": 2}
    with pytest.raises(
        OptionError, match=rf"^f\(\): unknown sketch: expected 'uniform' \| 'gaussian', got '{given}'. {fix}"
    ):
        choose(table, given, call="f()", option="sketch")


@pytest.mark.parametrize("given", [None, 3, ["uniform"]])
def test_choose_refuses_what_is_no_name(given: object) -> None:
    with pytest.raises(OptionError, match="unknown sketch"):
        choose({"uniform": 1}, given, call="f()", option="sketch")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
CONTAINERS = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(PLAIN, inner)
)


@given(CONTAINERS)
@settings(deadline=None)
def test_shown_is_the_repr_of_what_is_small_and_its_beginning_else(value: object) -> None:
    whole = repr(value)
    assert shown(value) == (whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}...")
    assert shown(value, 10).startswith(whole[:10])


class _Refusing:
    def __repr__(self) -> str:
        raise RuntimeError


def _nested(levels: int, wrap: Callable[[Any], object]) -> object:
    value: object = ()
    for _ in range(levels):
        value = wrap(value)
    return value


ENDLESS: dict[str, Any] = {
    "doubled": _nested(200, lambda value: [value, value]),
    "doubled tuples": _nested(200, lambda value: (value, value)),
    "doubled frozensets": _nested(200, lambda value: frozenset((value, frozenset((value,))))),
    "doubled values": _nested(200, lambda value: {1: value, 2: value}),
    "deep": _nested(100_000, lambda value: [value]),
    "long": [0] * 10**6,
    "long text": "x" * 10**7,
    "long bytes": b"x" * 10**7,
    "long number": 10 ** (10**6),
    "refusing": _Refusing(),
}
ENDLESS["itself"] = itself = []
itself.append(itself)


@pytest.mark.parametrize("value", ENDLESS.values(), ids=ENDLESS.keys())
def test_messages_are_short_whatever_came(value: object) -> None:
    error = SengError("f()", "wrong", expected="less", got=value, fix="Send less")
    assert len(str(error)) < LONGEST + 100
    with pytest.raises(OptionError, match="unknown sketch"):
        choose({"uniform": 1}, value, call="f()", option="sketch")
