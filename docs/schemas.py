"""Write docs/*.schema.json and docs/recording.proto, the schemas of our files: `python docs/schemas.py`.

msgspec makes the schemas from the Structs that read the files; the docstrings become the descriptions. A
test compares the files with what this script would write.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import typing
from pathlib import Path
from typing import Any

import msgspec

from rql_deploy.bundle.certificate import Certificate
from rql_deploy.bundle.manifest import Manifest
from rql_deploy.contract import Contract
from rql_deploy.distributed.sweep.file import SweepFile
from rql_deploy.limits import Limits
from rql_deploy.runtime.recording import protobuf
from rql_deploy.runtime.recording.messages import MESSAGES, Doubles, Float, Floats
from rql_deploy.structs import MAX_FLOAT
from rql_deploy.train.checkpoints.header import CheckpointHeader
from rql_deploy.train.config import TrainConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).parent
PUBLISHED: dict[str, type[msgspec.Struct]] = {
    "certificate": Certificate,
    "checkpoint": CheckpointHeader,
    "contract": Contract,
    "limits": Limits,
    "manifest": Manifest,
    "sweep": SweepFile,
    "train": TrainConfig,
}
"""By name of the file, docs/NAME.schema.json."""


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON Schema of a Struct. Descriptions are the docstrings of the classes and of their fields."""
    _, components = msgspec.json.schema_components([cls])
    classes = {found.__name__: found for found in _structs(cls, {})}
    for name, table in components.items():
        texts = _field_docstrings(classes[name])
        table["description"] = _one_paragraph(classes[name].__doc__ or "")
        table["properties"] = {
            field: ({"description": texts[field]} if field in texts else {}) | _without_float_range(entry)
            for field, entry in table["properties"].items()
        }
    return {"$schema": DIALECT, **components.pop(cls.__name__), "$defs": components}


def _structs(hint: Any, found: dict[type, None]) -> dict[type, None]:
    """Every Struct that a type is made of."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in found:
        found[hint] = None
        for inner in typing.get_type_hints(hint).values():
            _structs(inner, found)
    for inner in typing.get_args(hint):
        _structs(inner, found)
    return found


def _without_float_range(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON's numbers are finite: the bounds of `Finite` would say nothing there."""
    cleaned: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, float) and abs(value) == MAX_FLOAT:
            continue
        if isinstance(value, dict):
            value = _without_float_range(value)
        elif isinstance(value, list):
            value = [_without_float_range(part) if isinstance(part, dict) else part for part in value]
        cleaned[key] = value
    return cleaned


def _field_docstrings(cls: type) -> dict[str, str]:
    """The string literal below each field of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found, field = {}, None
    for node in tree.body:
        if field and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[field] = _one_paragraph(str(node.value.value))
        named = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        field = node.target.id if named else None  # type: ignore[attr-defined]
    return found


def _one_paragraph(text: str) -> str:
    return " ".join(text.split())


PROTO = FOLDER / "recording.proto"
_PROTO_TYPES = {
    float: "double",
    Float: "float",
    int: "int64",
    bool: "bool",
    str: "string",
    bytes: "bytes",
    Floats: "repeated float",
    Doubles: "repeated double",
}


def proto_text() -> str:
    """What docs/recording.proto should hold: the messages of a recording (docs/recordings.md)."""
    found: dict[type[msgspec.Struct], None] = {}
    for cls in MESSAGES.values():
        found |= dict.fromkeys(protobuf.structs_in(cls))
    parts = ['// Written by docs/schemas.py.\nsyntax = "proto3";\npackage rql;\n']
    for cls in found:
        texts = _field_docstrings(cls)
        lines = [*_comment(_one_paragraph(cls.__doc__ or ""), ""), f"message {cls.__name__} {{"]
        for number, (name, kind) in enumerate(protobuf.field_types(cls).items(), start=1):
            lines += _comment(texts.get(name, ""), "  ")
            spelled = kind.hint.__name__ if protobuf.is_struct(kind.hint) else _PROTO_TYPES[kind.hint]
            label = "repeated " if kind.repeated else "optional " if kind.optional else ""
            lines.append(f"  {label}{spelled} {name} = {number};")
        parts.append("\n".join([*lines, "}"]) + "\n")
    return "\n".join(parts)


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}// {line}" for line in textwrap.wrap(text, 100)]


def text_of(name: str) -> str:
    """What docs/NAME.schema.json should hold."""
    return json.dumps(json_schema(PUBLISHED[name]), indent=1) + "\n"


if __name__ == "__main__":
    for name in PUBLISHED:
        (FOLDER / f"{name}.schema.json").write_text(text_of(name))
    PROTO.write_text(proto_text())
