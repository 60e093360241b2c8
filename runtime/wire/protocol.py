"""Wire protocol 2: a message is one frame of prefix, msgpack header and arrays (docs/protocol.md).

No pickle, no eval. ZMQ_MAXMSGSIZE bounds a message before it is received; reading one allocates nothing of
its own but the header's entries.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zmq
from zmq.backend import Socket as Backend

from rql_deploy.errors import suggestion

from .arrays import (
    ALIGNMENT,
    DTYPES,
    MAX_ARRAYS,
    MAX_MESSAGE_BYTES,
    PADDING,
    Arrays,
    Layout,
    Packed,
    describe,
    read_named,
)
from .checks import ProtocolError
from .headers import REFUSAL, REQUESTS, ActManyReply, ActReply, Message, R, Refusal, Reply, Request

__all__ = ["DTYPES", "MAX_ARRAYS", "MAX_MESSAGE_BYTES", "Arrays", "Layout", "Packed", "ProtocolError"]

VERSION = 2
MAGIC = b"RQL"
PREFIX = struct.Struct("<3sBBxHQQ")
"""Magic, version, kind, (zero), header's length, id, epoch. Every later version begins so, too."""
MAX_HEADER_BYTES = 2**16 - 1
ZERO_COPY_BYTES = 64 * 1024
"""Below this, copying a message is cheaper than keeping track of it."""
MAX_REASON = 400
"""Characters of an error that quotes what was received."""

Payload = Arrays | Packed
"""Arrays by name, or with a block."""
OPERATIONS = tuple(REQUESTS)
_BY_KIND = {request.kind: request for request in REQUESTS.values()}
_NO_ARRAYS = Packed(())
_FLOAT32 = DTYPES["float32"]


def _number(value: Any) -> Any:
    """A numpy scalar as the number it holds."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot send {type(value).__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_number)


@functools.cache
def _decoder(message: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    # Made when first used: a client needs half of them, and each takes time to make.
    return msgspec.msgpack.Decoder(message)


class Head(NamedTuple):
    """A message whose prefix has been read."""

    version: int
    kind: int
    id: int
    """Number of the request, and of its replies."""
    epoch: int
    """Drawn at random by a client when it starts, and echoed."""
    end: int
    """Of the header, in bytes from the frame's begin."""
    frame: Any


def encode(message: Message, arrays: Payload | None = None, *, id: int, epoch: int) -> bytes:
    """The frame of a message. `message` gets the names, dtypes and shapes of the arrays, and the rows.

    Raises ProtocolError for a dtype that the wire does not have, and for too long a header.
    """
    packed = arrays if isinstance(arrays, Packed) else Packed((), 1, arrays) if arrays else _NO_ARRAYS
    parts, rows, named = packed
    if named:
        message.arrays = describe(named)
    if rows != 1:
        message.rows = rows  # type: ignore[attr-defined]
    header = _ENCODER.encode(message)
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError("too_large", f"the header has {len(header)} bytes, of {MAX_HEADER_BYTES} at most")
    place = PREFIX.size + len(header)
    pieces: list[Any] = [PREFIX.pack(MAGIC, VERSION, message.kind, len(header), id, epoch), header]
    for array in named.values():
        pieces += (PADDING[place % ALIGNMENT], np.ascontiguousarray(array))
        place += -place % ALIGNMENT + array.nbytes
    if parts:
        pieces.append(PADDING[place % ALIGNMENT])
        pieces += parts
    return b"".join(pieces)


def decode(frame: Any) -> Head:
    """The prefix of a message. Raises ProtocolError where it has none; other versions are read so far."""
    if len(frame) < PREFIX.size or frame[:3] != MAGIC:
        raise _without_prefix(frame)
    _, version, kind, length, number, epoch = PREFIX.unpack_from(frame)
    return Head(version, kind, number, epoch, PREFIX.size + length, frame)


def decode_request(head: Head) -> Request[Any]:
    """The header of a request. Raises ProtocolError."""
    if head.version != VERSION:
        raise ProtocolError("version", _wrong_version(head.version))
    definition = _BY_KIND.get(head.kind)
    if definition is None:
        raise ProtocolError(
            "unknown_operation", f"this server knows no operation {head.kind}, but {', '.join(OPERATIONS)}"
        )
    request: Request[Any] = _decode_header(head, definition, "bad_request")
    return request


def request_arrays(head: Head, request: Request[Any], layout: Layout | None = None) -> tuple[Arrays, Arrays]:
    """The fields of a request's block, `[rows, *shape]` under this layout, and its arrays by name.

    Raises ProtocolError, and ContractError when an observation is not finite.
    """
    named: Arrays = {}
    place, known = head.end, request.named
    if layout is not None and getattr(request, "jpeg", None):
        layout, known = layout.numeric, (*known, *layout.frames)
    if request.arrays:
        for name, _, _ in request.arrays:
            if name not in known:
                raise ProtocolError(
                    "bad_array",
                    f"`{request.operation}` takes no array '{name[:64]}'{suggestion(name[:64], known)}",
                )
        named, place = read_named(head.frame, place, request.arrays)
    if layout is None:
        _check_end(head, place)
        return {}, named
    rows = getattr(request, "rows", None)
    return layout.read(head.frame, place + -place % ALIGNMENT, 1 if rows is None else rows), named


def decode_reply(head: Head, reply_type: type[R]) -> tuple[R | Refusal, Arrays]:
    """Header and arrays of a reply, or of a refusal; a block of chunks is `actions`, not yet shaped.

    Raises ProtocolError.
    """
    if head.version != VERSION:
        raise ProtocolError("version", _wrong_version(head.version))
    if head.kind == REFUSAL:
        return _decode_header(head, Refusal, "bad_reply"), {}
    if head.kind != reply_type.kind:
        raise ProtocolError(
            "bad_reply", f"a reply of kind {head.kind} came where one of {reply_type.kind} must"
        )
    reply: R = _decode_header(head, reply_type, "bad_reply")
    named: dict[str, Any] = {}
    place = head.end
    if reply.arrays:
        named, place = read_named(head.frame, place, reply.arrays)
    if not issubclass(reply_type, ActReply | ActManyReply):
        _check_end(head, place)
        return reply, named
    place += -place % ALIGNMENT
    count, rest = divmod(len(head.frame) - place, _FLOAT32.itemsize)
    if count < 0 or rest:
        raise ProtocolError("bad_array", "the block is not float32 numbers")
    return reply, {**named, "actions": np.ndarray((count,), _FLOAT32, head.frame, place)}


def to_plain(reply: Reply) -> dict[str, Any]:
    """The entries of a reply as dict, list, str and numbers."""
    plain: dict[str, Any] = msgspec.to_builtins(reply)
    plain.pop("arrays", None)
    return plain


# Faults.


class OlderProtocol(ProtocolError):
    """A message of protocol 1, whose sender reads no other."""


def _wrong_version(theirs: int) -> str:
    older = "its sender" if theirs < VERSION else "this side"
    return f"the message is of protocol {theirs}, this side speaks protocol {VERSION}: update {older}"


def _without_prefix(frame: Any) -> ProtocolError:
    # Protocol 1 began with a msgpack map.
    if len(frame) and (frame[0] & 0xF0 == 0x80 or frame[0] in (0xDE, 0xDF)):
        return OlderProtocol("version", _wrong_version(1))
    return ProtocolError(
        "bad_message", f"the message does not begin with the {PREFIX.size} bytes of protocol {VERSION}"
    )


class _Version1(msgspec.Struct):
    """What a message of protocol 1 is answered by."""

    id: int | None = None
    epoch: int | None = None


def refusal_in_version_1(frame: Any, reason: str) -> bytes:
    """A refusal that the sender of a message of protocol 1 understands."""
    try:
        asked = msgspec.msgpack.decode(frame, type=_Version1)
    except Exception:  # classes without a common base
        asked = _Version1()
    said = {"v": 1, "id": asked.id, "epoch": asked.epoch, "ok": False, "code": "version", "error": reason}
    return msgspec.msgpack.encode(said | {"arrays": []})


def _check_end(head: Head, place: int) -> None:
    if place != len(head.frame):
        raise ProtocolError("bad_array", f"the message has {len(head.frame)} bytes, its header says {place}")


def _decode_header(head: Head, definition: type[Message], code: str) -> Any:
    if head.end > len(head.frame):
        raise ProtocolError("bad_header", "the message ends within its header")
    try:
        return _decoder(definition).decode(head.frame[PREFIX.size : head.end])
    except msgspec.ValidationError as error:
        code = "bad_array" if "`$.arrays" in str(error) else code
        raise ProtocolError(code, _explain(error, definition)) from error
    except Exception as error:  # cut short, not msgpack, not UTF-8, nested too deeply: no common base
        raise ProtocolError("bad_header", "the header is not a msgpack map") from error


def _explain(error: Exception, definition: type[Message]) -> str:
    """A sentence from msgspec's message, such as "Expected `int` >= 1 - at `$.candidates`"."""
    text = str(error)[:MAX_REASON]
    if found := re.match(r"Object contains unknown field `(.{0,64})", text, re.DOTALL):
        name = found.group(1).partition("`")[0]
        return f"the header has an unknown entry '{name}'{suggestion(name, definition.__struct_fields__)}"
    if found := re.match(r"Object missing required field `(\w+)`", text):
        return f"the header lacks entry '{found.group(1)}'"
    expected, _, place = text.replace("`", "").partition(" - at $")
    where = f"entry '{place.lstrip('.')}' of the header" if place.startswith(".") else "the header"
    return f"{where} is wrong: {expected[:1].lower()}{expected[1:]}"


# Sockets. pyzmq's wrappers turn every option and flag into an enum first: a fifth of a small request's cost.

NOBLOCK, SNDMORE, _RCVMORE, _EVENTS = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.RCVMORE), int(zmq.EVENTS)
READABLE, WRITABLE = int(zmq.POLLIN), int(zmq.POLLOUT)
_get: Callable[[Any, int], Any] = Backend.get
_send: Callable[..., Any] = Backend.send
_recv: Callable[..., Any] = Backend.recv


def ready(socket: zmq.Socket[Any], events: int) -> bool:
    """Whether the socket is `READABLE` or `WRITABLE` now, whichever of them is asked for."""
    now: int = _get(socket, _EVENTS)
    return now & events != 0


def send(socket: zmq.Socket[bytes], frame: bytes, flags: int = 0, *, client: bytes | None = None) -> None:
    """Send a message, from a ROUTER to that client; one of `ZERO_COPY_BYTES` and more is not copied.

    Raises zmq.Again when there is no room.
    """
    if client is not None:
        _send(socket, client, flags | SNDMORE)
    _send(socket, frame, flags, len(frame) < ZERO_COPY_BYTES)


def receive(socket: zmq.Socket[bytes], flags: int = 0) -> bytes:
    """The frame of one message; b"" for one of several frames, which are dropped one by one.

    Raises zmq.Again when no message has come.
    """
    frame: bytes = _recv(socket, flags)
    return b"" if _get(socket, _RCVMORE) and drop_rest(socket) else frame


def drop_rest(socket: zmq.Socket[bytes]) -> bool:
    """Drop what is left of a message, without a copy; whether there was any."""
    several = False
    while _get(socket, _RCVMORE):
        several = True
        _recv(socket, NOBLOCK, False)
    return several


def receive_from(
    router: zmq.Socket[bytes], flags: int = 0, *, large: bool = False
) -> tuple[zmq.Frame, Any, bool]:
    """Client, frame, and whether that was the whole message; of others, the further frames are dropped.

    The client's frame also knows ZeroMQ's notes on its connection.

    With `large`, a frame of `ZERO_COPY_BYTES` and more is a buffer that is not copied. Raises zmq.Again when
    no message has come.
    """
    client: zmq.Frame = _recv(router, flags, False)
    frame = contents(_recv(router, NOBLOCK, False)) if large else _recv(router, NOBLOCK)
    return client, frame, not (_get(router, _RCVMORE) and drop_rest(router))


def contents(frame: zmq.Frame) -> Any:
    """The bytes of a small frame, or the buffer of a large one, which is not copied."""
    return frame.buffer if len(frame) >= ZERO_COPY_BYTES else frame.bytes
