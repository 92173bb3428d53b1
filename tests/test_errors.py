"""Errors name the call, the problem, what was expected, what came, where, and the remedy."""

from __future__ import annotations

import pickle

import pytest

from seng import errors
from seng.errors import OptionError, SengError, choose

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
