"""Frozen dataclasses from plain data (JSON, TOML): every key and type checked, unknown keys named with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from rql_deploy.errors import UserError

T = TypeVar("T")
MOST_NAMES = 24
"""Known names that a message lists."""


def from_plain(cls: type[T], data: Any, where: str, error: type[UserError] = UserError) -> T:
    """Build the dataclass `cls` from plain data; raises `error` naming the place when a key or a type does not fit."""
    if not isinstance(data, Mapping):
        raise error(f"{where} should be a table, not {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise error(f"{where} has an unknown entry '{key}'{suggestion(key, known)}")
    values = {}
    for name, spec in known.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}.{name}", error)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise error(f"{where} lacks the entry '{name}'")
    return cls(**values)


def without_infinities(data: Any) -> Any:
    """Plain data with 'Infinity', '-Infinity' and 'NaN' as text, since JSON has no numbers for them."""
    if isinstance(data, Mapping):
        return {key: without_infinities(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(without_infinities(value) for value in data)
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data


def suggestion(word: str, known: typing.Iterable[str]) -> str:
    """': did you mean ...?' for a misspelt word, or the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(near)}?"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f": there is {', '.join(names[:MOST_NAMES])}{more}" if names else ""


def _convert(hint: Any, value: Any, where: str, error: type[UserError]) -> Any:
    origin = typing.get_origin(hint)
    wrong = error(f"{where} should be {_spell(hint)}, not {value!r:.60}")
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where, error)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise wrong
        return value
    if origin is types.UnionType:
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        return None if value is None else _convert(inner, value, where, error)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise wrong
        return tuple(
            _convert(typing.get_args(hint)[0], v, f"{where}[{i}]", error) for i, v in enumerate(value)
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise wrong
        return {
            str(k): _convert(typing.get_args(hint)[1], v, f"{where}.{k}", error) for k, v in value.items()
        }
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise wrong
        return float(value)
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, hint):
        raise wrong
    return value


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return {float: "a finite number", int: "a whole number", str: "text", bool: "true or false"}.get(
        hint, "a list or table"
    )
