"""Wire protocol 1: multipart messages of one msgpack header and raw array buffers (docs/protocol.md).

No pickle, no eval. Sizes are checked before anything is decoded; of a single frame before it is received, by
ZMQ_MAXMSGSIZE.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.backend import Socket as Backend

from .headers import REQUESTS, ArraySpec, Head, Message, R, Refusal, Reply, Request

Arrays = Mapping[str, NDArray[Any]]

VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_ARRAYS = 64
MAX_DIMENSIONS = 8
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
ZERO_COPY_BYTES = 32 * 1024
"""Below this, copying a frame is cheaper than keeping track of it."""
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "uint8", "int32", "int64")}
# Looked up here, not as dtype.name, which numpy computes in Python.
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

OPERATIONS = tuple(REQUESTS)


def _number(value: Any) -> Any:
    """A numpy scalar as the number it holds."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot send {type(value).__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_number)
_HEAD = msgspec.msgpack.Decoder(Head)


@functools.cache
def _decoder(message: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    # Made when first used: a client needs half of them, and each takes time to make.
    return msgspec.msgpack.Decoder(message)


class ProtocolError(Exception):
    """A message that does not follow the protocol; `code` goes back to its sender."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


def encode(
    message: Message, arrays: Mapping[str, NDArray[Any]] | None = None, *, id: int | None, epoch: int | None
) -> list[Any]:
    """Frames of a message: its header, then one buffer per array; large ones are not copied.

    `message` gets version, `id`, `epoch` and the names, dtypes and shapes of the arrays.
    """
    described: list[ArraySpec] = []
    frames: list[Any] = [b""]
    for name, array in (arrays or {}).items():
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise ProtocolError(
                "bad_array", f"array '{name}' has dtype {array.dtype}: use one of {', '.join(DTYPES)}"
            )
        described.append((name, dtype, list(array.shape)))
        frames.append(array.tobytes() if array.nbytes < ZERO_COPY_BYTES else np.ascontiguousarray(array).data)
    message.v, message.id, message.epoch, message.arrays = VERSION, id, epoch, described
    if isinstance(message, Reply):
        message.ok = not isinstance(message, Refusal)
    frames[0] = _ENCODER.encode(message)
    return frames


# pyzmq's wrappers turn every option and flag into an enum first: a fifth of a small request's cost.
NOBLOCK, SNDMORE, _RCVMORE, _EVENTS = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.RCVMORE), int(zmq.EVENTS)
_get: Callable[[Any, int], Any] = Backend.get
_send: Callable[..., Any] = Backend.send
_recv: Callable[..., Any] = Backend.recv


def ready(socket: zmq.Socket[Any], event: int) -> bool:
    """Whether the socket can be read from (POLLIN) or written to (POLLOUT) now."""
    return bool(_get(socket, _EVENTS) & event)


def send(socket: zmq.Socket[bytes], frames: Sequence[Any], flags: int = 0) -> None:
    """Send a message; frames of `ZERO_COPY_BYTES` and more are not copied.

    Raises zmq.Again when there is no room.

    Once the first frame is taken, ZeroMQ takes the rest.
    """
    last = len(frames) - 1
    for i, frame in enumerate(frames):
        _send(
            socket,
            frame,
            flags if i == last else flags | SNDMORE,
            not isinstance(frame, memoryview) or frame.nbytes < ZERO_COPY_BYTES,
        )


def receive(socket: zmq.Socket[bytes], flags: int = 0, *, large: bool = False) -> list[Any]:
    """The frames of one message; with `large`, those after the first are buffers that are not copied.

    Raises zmq.Again when no message has come.
    """
    frames: list[Any] = [_recv(socket, flags)]
    while _get(socket, _RCVMORE):
        frames.append(_recv(socket, NOBLOCK, False).buffer if large else _recv(socket, NOBLOCK))
    return frames


def decode(frames: Sequence[Any]) -> tuple[Head, Arrays]:
    """What every header has, and the arrays of a message.

    Arrays are read-only views of their frames. Raises ProtocolError.
    """
    if not frames:
        raise ProtocolError("bad_message", "the message has no frames")
    sizes = [len(frame) for frame in frames]
    if sizes[0] > MAX_HEADER_BYTES or sum(sizes) > MAX_MESSAGE_BYTES or len(sizes) > MAX_ARRAYS + 1:
        raise ProtocolError("too_large", "the message is larger than the protocol allows")
    try:
        head = _HEAD.decode(frames[0])
    except msgspec.ValidationError as error:
        code = "bad_array" if "`$.arrays" in str(error) else "bad_header"
        raise ProtocolError(code, _explain(error)) from error
    except (
        Exception
    ) as error:  # truncated, not msgpack, not UTF-8 or nested too deeply: classes without a common base
        raise ProtocolError("bad_header", "the header is not a msgpack map") from error
    described = head.arrays or []
    if len(described) != len(sizes) - 1:
        raise ProtocolError("bad_array", "the header does not describe as many arrays as there are frames")
    arrays: dict[str, NDArray[Any]] = {}
    for spec, frame, size in zip(described, frames[1:], sizes[1:], strict=True):
        if spec[0] in arrays:
            raise ProtocolError("bad_array", f"array '{spec[0][:64]}' comes twice")
        arrays[spec[0]] = _decode_array(spec, frame, size)
    return head, arrays


def decode_request(head: Head, frame: Any) -> Request[Any]:
    """The whole header of a request whose `head` was decoded from `frame`. Raises ProtocolError."""
    definition = REQUESTS.get(head.op) if type(head.op) is str else None
    if definition is None:
        raise ProtocolError("unknown_operation", f"this server knows {', '.join(OPERATIONS)}")
    try:
        request: Request[Any] = _decoder(definition).decode(frame)
    except msgspec.ValidationError as error:
        raise ProtocolError("bad_request", _explain(error)) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_header", "the header is not a msgpack map") from error
    return request


def decode_reply(reply_type: type[R], frame: Any) -> R:
    """The whole header of a reply that is `ok`. Raises ProtocolError."""
    try:
        reply: R = _decoder(reply_type).decode(frame)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_reply", _explain(error)) from error
    return reply


def to_plain(reply: Reply) -> dict[str, Any]:
    """The entries of a reply as dict, list, str and numbers."""
    plain: dict[str, Any] = msgspec.to_builtins(reply)
    plain.pop("arrays", None)
    return plain


def _decode_array(spec: ArraySpec, frame: Any, size: int) -> NDArray[Any]:
    name, dtype_name, shape = spec
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise ProtocolError("bad_array", f"an array has an unknown dtype: use one of {', '.join(DTYPES)}")
    if len(shape) > MAX_DIMENSIONS or not all(0 <= n <= MAX_MESSAGE_BYTES for n in shape):
        raise ProtocolError("bad_array", f"array '{name[:64]}' has no valid shape")
    if math.prod(shape) * dtype.itemsize != size:
        raise ProtocolError(
            "bad_array", f"array '{name[:64]}' has {size} bytes, its shape and dtype say otherwise"
        )
    array = np.frombuffer(frame, dtype)
    return array if len(shape) == 1 else array.reshape(shape)


def _explain(error: Exception) -> str:
    """A sentence from msgspec's message, such as "Expected `int` >= 1 - at `$.candidates`"."""
    expected, _, place = str(error).replace("`", "").partition(" - at $")
    where = (
        f"entry '{place.lstrip('.')}' of the header is wrong"
        if place.startswith(".")
        else "the header is wrong"
    )
    return f"{where}: {expected[:1].lower()}{expected[1:]}"
