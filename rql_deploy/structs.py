"""Typed files: msgspec Structs from JSON and TOML data and back, errors name the path of the entry."""

from __future__ import annotations

import json
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from rql_deploy.errors import UserError, suggestion

T = TypeVar("T")
MAX_FLOAT = sys.float_info.max
Finite = Annotated[float, msgspec.Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]
"""A number that is neither NaN nor infinite."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything that is read from a file: immutable, no unknown entries."""


def convert(data: Any, cls: type[T], where: str, error: type[UserError] = UserError) -> T:
    """Build `cls` from parsed JSON or TOML.

    Raises `error` when an entry is unknown, missing or of the wrong type. The message begins with the path of
    that entry, `where` first: `limits.toml.actions.dx.low should be a finite number, not 'x'`.
    """
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError:
        raise error(_explain(data, cls, where)) from None


def to_plain(value: Any) -> Any:
    """A Struct, or anything that holds Structs and numpy numbers, as JSON data (dict, list, scalars)."""
    # Through text, which turns tuples into lists.
    return json.loads(json.dumps(msgspec.to_builtins(value, enc_hook=_from_subclass)))


def without_infinities(data: Any) -> Any:
    """Plain data in which Infinity, -Infinity and NaN are text, because JSON has no numbers for them."""
    if isinstance(data, Mapping):
        return {key: without_infinities(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(without_infinities(value) for value in data)
    if isinstance(data, float | np.floating) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data


def _from_subclass(value: Any) -> Any:
    """For msgspec: numpy's scalars and arrays, subclasses of Python's scalars, other mappings."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _explain(value: Any, hint: Any, where: str) -> str:
    """What is wrong with `value`, which does not fit `hint`: the sentence for the first entry at fault."""
    if isinstance(value, Mapping) and _is_struct(hint):
        known = hint.__struct_fields__
        if unknown := [key for key in value if key not in known]:
            return f"{where} has an unknown entry '{unknown[0]}'{suggestion(str(unknown[0]), known)}"
    for child, child_hint, path in _entries(value, hint, where):
        try:
            msgspec.convert(child, child_hint)
        except msgspec.ValidationError:
            return _explain(child, child_hint, path)
    if _is_struct(hint):
        if not isinstance(value, Mapping):
            return f"{where} should be a table, not {type(value).__name__}"
        for field in msgspec.structs.fields(hint):
            if field.required and field.name not in value:
                return f"{where} lacks the entry '{field.name}'"
    return f"{where} should be {_spell(hint)}, not {value!r:.60}"


def _entries(value: Any, hint: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """(entry, its type, its path) for everything that `value` is made of."""
    hint, origin = _required_part(hint), typing.get_origin(_required_part(hint))
    if _is_struct(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint, include_extras=True)
        yield from (
            (value[name], hints[name], f"{where}.{name}") for name in hint.__struct_fields__ if name in value
        )
    elif origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        yield from ((entry, typing.get_args(hint)[0], f"{where}[{i}]") for i, entry in enumerate(value))
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        yield from ((entry, typing.get_args(hint)[1], f"{where}.{key}") for key, entry in value.items())


def _required_part(hint: Any) -> Any:
    """`X` of `X | None`; any other hint as it is."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 else hint


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _spell(hint: Any) -> str:
    hint = _required_part(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    kinds = {float: "a finite number", int: "a whole number", str: "text", bool: "true or false"}
    return kinds.get(kind, "a list or table")
