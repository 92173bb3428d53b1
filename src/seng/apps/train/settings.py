"""Settings as text: how a command line changes a config, and how JSON carries one.

A setting is named by its path (``optimizer.seng.damping``) or, where no other has the same, by its last word.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from .config import RunConfig
from .errors import ConfigError

OTHER_VERSION = "Start a new run: this one was made by another version"


def settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every setting of a config as ``{path: value}``, in order."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= settings(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def override(config: RunConfig, changes: Mapping[str, str]) -> RunConfig:
    """Return ``config`` with settings replaced by values given as text.

    Args:
        config: the recipe's settings; left as they are.
        changes: ``{name: text}``; a name is a path or an unambiguous last word, "none" is None, a tuple is
            written with commas.

    Raises:
        ConfigError: no such setting, an ambiguous name, or text that is no value of the setting's type.

    Example:
        >>> from seng.apps.recipes import RECIPES
        >>> override(RECIPES["digits"](), {"damping": "0.3"}).optimizer.seng.damping
        0.3
    """
    for name, text in changes.items():
        path = _resolve(config, name)
        config = _replace(config, path.split("."), text, name)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a config as nested plain values (for JSON and checkpoints)."""
    return dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any], kind: type[Any] = RunConfig) -> Any:
    """Rebuild a config from ``to_dict``'s values.

    Raises:
        ConfigError: a field is unknown, missing, or of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(data, Mapping) or set(data) != set(hints):
        got = sorted(data) if isinstance(data, Mapping) else data
        raise ConfigError(
            "from_dict", f"not a {kind.__name__}", expected=str(sorted(hints)), got=got, fix=OTHER_VERSION
        )
    return kind(**{name: _restore(hints[name], value, name) for name, value in data.items()})


def _resolve(config: RunConfig, name: str) -> str:
    known = settings(config)
    paths = [path for path in known if path == name or path.endswith(f".{name}")]
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise ConfigError(
            "override",
            f"the setting {name} is ambiguous",
            expected=" or ".join(paths),
            got=name,
            fix="Write the whole path",
        )
    words = [*known, *(path.rsplit(".", 1)[-1] for path in known)]
    close = difflib.get_close_matches(name, words, n=1)
    raise ConfigError(
        "override",
        f"unknown setting for {config.recipe} with {config.optimizer.name}",
        expected=", ".join(known),
        got=name,
        fix=f"Did you mean {close[0]!r}" if close else "Choose one of the names listed",
    )


def _replace(config: Any, path: list[str], text: str, name: str) -> Any:
    head, *rest = path
    if rest:
        value = _replace(getattr(config, head), rest, text, name)
    else:
        value = _parse(typing.get_type_hints(type(config))[head], text, name)
    return dataclasses.replace(config, **{head: value})


def _alternatives(hint: Any) -> list[Any]:
    """Return the members of a union, None first, or the type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return sorted(typing.get_args(hint), key=lambda kind: kind is not type(None)) if is_union else [hint]


def _parse(hint: Any, text: str, name: str) -> Any:
    for kind in _alternatives(hint):
        try:
            return _parse_one(kind, text)
        except (KeyError, ValueError):
            continue
    raise ConfigError(
        "override",
        f"bad value for {name}",
        expected=describe(hint),
        got=text,
        fix=f"Correct the value of {name}",
    )


def _parse_one(kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(_whole(part) for part in text.split(","))
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)[typing.get_args(kind).index(text)]
    if kind is bool:
        return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
    if kind is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    return _whole(text) if kind is int else kind(text)


def _whole(text: str) -> int:
    """Return a whole number that 64 bits hold."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(text)
    return value


def _restore(hint: Any, value: Any, name: str) -> Any:
    for kind in _alternatives(hint):
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            return from_dict(value, typing.cast("type[Any]", kind))
        if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            return tuple(_restore(int, part, name) for part in value)
        if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
            return value
        if isinstance(kind, type) and type(value) in ((float, int) if kind is float else (kind,)):
            return value
    raise ConfigError("from_dict", f"bad value for {name}", expected=describe(hint), got=value, fix=OTHER_VERSION)


def describe(hint: Any) -> str:
    """Say in words what values a type admits."""
    return " or ".join(_describe_one(kind) for kind in _alternatives(hint))


def _describe_one(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "whole numbers with commas between"
    words: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", type(None): "none"}
    words[bool] = "true or false"
    return words.get(kind, "a group of settings")
