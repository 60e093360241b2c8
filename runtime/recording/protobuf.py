"""Protocol Buffers from the recording's message definitions: descriptors, and bytes there and back.

Two descriptors are made of each definition. The published one, which every file carries, calls arrays packed
repeated numbers. The one used here calls them bytes, which have the same encoding, so that they are copied
and not converted.
"""

from __future__ import annotations

import types
import typing
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from .messages import MESSAGES, Doubles, Float, Floats

PACKAGE = "rql"
T = TypeVar("T")
_F = FieldDescriptorProto
_SCALARS: dict[Any, Any] = {
    float: _F.TYPE_DOUBLE,
    Float: _F.TYPE_FLOAT,
    int: _F.TYPE_INT64,
    bool: _F.TYPE_BOOL,
    str: _F.TYPE_STRING,
    bytes: _F.TYPE_BYTES,
}
_PACKED: dict[Any, Any] = {Floats: _F.TYPE_FLOAT, Doubles: _F.TYPE_DOUBLE}


class FieldType(typing.NamedTuple):
    """The type of a field of a definition."""

    hint: Any
    """A scalar, an array of numbers or a Struct; of a list, that of its entries."""
    repeated: bool
    optional: bool


def field_types(cls: type[msgspec.Struct]) -> dict[str, FieldType]:
    """The fields of a definition in order; field i has number i + 1."""
    hints = typing.get_type_hints(cls)
    return {name: _field_type(hints[name]) for name in cls.__struct_fields__}


def structs_in(cls: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The definitions that a message is made of, itself last."""
    found: list[type[msgspec.Struct]] = []
    for kind in field_types(cls).values():
        if is_struct(kind.hint):
            found += [inner for inner in structs_in(kind.hint) if inner not in found]
    return [*found, cls]


def is_struct(hint: Any) -> bool:
    """Whether a field's type is another definition."""
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def schema(cls: type[msgspec.Struct]) -> tuple[str, bytes]:
    """Name and serialized FileDescriptorSet, as an MCAP file carries them."""
    descriptors = FileDescriptorSet(file=[_file(cls, published=True)])
    return f"{PACKAGE}.{cls.__name__}", descriptors.SerializeToString()


def encode(message: msgspec.Struct) -> bytes:
    """A message as bytes."""
    data: bytes = _message_class(type(message))(**_plain(message)).SerializeToString()
    return data


def decode(data: bytes, cls: type[T]) -> T:
    """A message from bytes; raises DecodeError for bytes that are none."""
    message: T = _read(_message_class(typing.cast("Any", cls)).FromString(data), cls)
    return message


@lru_cache(None)
def _message_class(cls: Any) -> Any:
    pool = DescriptorPool()
    pool.Add(_file(cls, published=False))
    return GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{cls.__name__}"))


def _file(cls: type[msgspec.Struct], *, published: bool) -> FileDescriptorProto:
    file = FileDescriptorProto(name=f"{PACKAGE}/{cls.__name__}.proto", package=PACKAGE, syntax="proto3")
    for struct in structs_in(cls):
        message = file.message_type.add(name=struct.__name__)
        for number, (name, kind) in enumerate(field_types(struct).items(), start=1):
            field = message.field.add(name=name, number=number, label=_F.LABEL_OPTIONAL)
            if kind.repeated or (published and kind.hint in _PACKED):
                field.label = _F.LABEL_REPEATED
            if is_struct(kind.hint):
                field.type, field.type_name = _F.TYPE_MESSAGE, f".{PACKAGE}.{kind.hint.__name__}"
            elif kind.hint in _PACKED:
                field.type = _PACKED[kind.hint] if published else _F.TYPE_BYTES
            else:
                field.type = _SCALARS[kind.hint]
                if kind.optional:
                    field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
                    message.oneof_decl.add(name=f"_{name}")
    return file


@lru_cache(None)
def _plan(cls: Any) -> list[tuple[str, FieldType, bool]]:
    return [(name, kind, is_struct(kind.hint)) for name, kind in field_types(cls).items()]


@lru_cache(None)
def _parts(cls: Any) -> list[tuple[str, bool]]:
    """Fields that are messages themselves, and whether of several."""
    return [(name, kind.repeated) for name, kind, struct in _plan(cls) if struct]


def _plain(message: msgspec.Struct) -> dict[str, Any]:
    """A message as its class takes it, which leaves out what is None."""
    fields = msgspec.structs.asdict(message)
    for name, repeated in _parts(type(message)):
        value = fields[name]
        if repeated:
            fields[name] = [_plain(entry) for entry in value]
        elif value is not None:
            fields[name] = _plain(value)
    return fields


def _read(source: Any, cls: Any) -> Any:
    found = {}
    for name, kind, struct in _plan(cls):
        if kind.optional and not source.HasField(name):
            continue
        value = getattr(source, name)
        if struct:
            value = [_read(entry, kind.hint) for entry in value] if kind.repeated else _read(value, kind.hint)
        elif kind.repeated:
            value = list(value)
        found[name] = value
    return cls(**found)


def _field_type(hint: Any) -> FieldType:
    """The type behind annotations, lists and `| None`."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return FieldType(parts[0], True, False)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = [part for part in parts if part is not type(None)]
        return FieldType(inner, False, True)
    return FieldType(hint, False, False)


SCHEMAS = {topic: schema(cls) for topic, cls in MESSAGES.items()}
"""By topic: name and FileDescriptorSet."""
