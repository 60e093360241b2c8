"""JSON Schemas of our files, made from the dataclasses that read them: `python -m rql_deploy.schema` prints the contract's.

docs/contract.schema.json and docs/limits.schema.json are this module's output; a test holds them to it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from rql_deploy.contract import Contract
from rql_deploy.limits import Limits

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PUBLISHED: Mapping[str, type] = {"contract": Contract, "limits": Limits}


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON Schema of a frozen dataclass as `rql_deploy.plain.from_plain` reads it: no unknown entries, every type as annotated."""
    definitions: dict[str, Any] = {}
    root = _table(cls, definitions)
    return {"$schema": DIALECT, "title": cls.__name__, **root, "$defs": definitions}


def _table(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(cls), _field_docstrings(cls)
    properties, required = {}, []
    for spec in dataclasses.fields(cls):
        entry = _of(hints[spec.name], definitions)
        if text := texts.get(spec.name):
            entry = {"description": text, **entry}
        if spec.default is not dataclasses.MISSING:
            entry["default"] = spec.default
        elif spec.default_factory is dataclasses.MISSING:
            required.append(spec.name)
        properties[spec.name] = entry
    return {
        "description": _one_paragraph(cls.__doc__ or ""),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _table(typing.cast(type, hint), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if hint is Any:
        return {}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is types.UnionType:
        return {"anyOf": [_of(a, definitions) for a in arguments if a is not type(None)] + [{"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    return {"type": {float: "number", int: "integer", str: "string", bool: "boolean"}[hint]}


def _field_docstrings(cls: type) -> dict[str, str]:
    """The string literal below each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found, previous = {}, None
    for node in tree.body:
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and previous
        ):
            found[previous] = _one_paragraph(node.value.value)
        previous = (
            node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else None
        )
    return found


def _one_paragraph(text: str) -> str:
    return " ".join(text.split())


def main(arguments: list[str]) -> None:
    """Print one of the published schemas."""
    name = arguments[0] if arguments else "contract"
    if name not in PUBLISHED:
        sys.exit(f"there is no schema '{name}': there is {', '.join(PUBLISHED)}")
    print(json.dumps(json_schema(PUBLISHED[name]), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
