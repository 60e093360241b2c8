"""Wire protocol v1: multipart messages of one msgpack header and raw array buffers. docs/protocol.md is its description.

No pickle, no eval; sizes are bounded before anything is decoded (a single frame before it is received, by ZMQ_MAXMSGSIZE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.backend import Socket as Backend

VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_ARRAYS = 64
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
ZERO_COPY_BYTES = 32 * 1024
"""Below this, copying a frame is cheaper than keeping track of it."""
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "uint8", "int32", "int64")}
# Looked up here, not as dtype.name, which numpy computes in Python.
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

OPERATIONS = ("hello", "act", "refine", "value", "reset", "episode", "stats", "ping")


class ProtocolError(Exception):
    """A message that does not follow the protocol; `code` goes back to its sender."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


def encode(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> list[Any]:
    """Frames of a message: the header with an `arrays` list of (name, dtype, shape), then one buffer per array; large ones not copied."""
    described: list[tuple[str, str, tuple[int, ...]]] = []
    frames: list[Any] = [b""]
    for name, array in (arrays or {}).items():
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise ProtocolError(
                "bad_array", f"array '{name}' has dtype {array.dtype}: use one of {', '.join(DTYPES)}"
            )
        described.append((name, dtype, array.shape))
        frames.append(array.tobytes() if array.nbytes < ZERO_COPY_BYTES else np.ascontiguousarray(array).data)
    frames[0] = msgpack.packb({**header, "arrays": described})
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
    """Send a message; frames of `ZERO_COPY_BYTES` and more are not copied. Raises zmq.Again when there is no room.

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
    """The frames of one message; with `large`, those after the first are buffers that are not copied. Raises zmq.Again without one."""
    frames: list[Any] = [_recv(socket, flags)]
    while _get(socket, _RCVMORE):
        frames.append(_recv(socket, NOBLOCK, False).buffer if large else _recv(socket, NOBLOCK))
    return frames


def decode(frames: Sequence[Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays of a message; arrays are read-only views of the frames. Raises ProtocolError."""
    if not frames:
        raise ProtocolError("bad_message", "the message has no frames")
    sizes = [len(frame) for frame in frames]
    if sizes[0] > MAX_HEADER_BYTES or sum(sizes) > MAX_MESSAGE_BYTES or len(sizes) > MAX_ARRAYS + 1:
        raise ProtocolError("too_large", "the message is larger than the protocol allows")
    try:
        header = msgpack.unpackb(
            frames[0], strict_map_key=True, max_array_len=1024, max_map_len=1024, max_str_len=MAX_HEADER_BYTES
        )
    except Exception as error:  # msgpack raises many unrelated classes for malformed input
        raise ProtocolError("bad_header", "the header is not msgpack") from error
    if not isinstance(header, dict):
        raise ProtocolError("bad_header", "the header is not a map")
    for key in header:
        if type(key) is not str:
            raise ProtocolError("bad_header", "the header is not a map with text keys")
    described = header.pop("arrays", [])
    if not isinstance(described, list) or len(described) != len(sizes) - 1:
        raise ProtocolError("bad_array", "the header does not describe as many arrays as there are frames")
    arrays: dict[str, NDArray[Any]] = {}
    for entry, frame, size in zip(described, frames[1:], sizes[1:], strict=True):
        name, array = _decode_array(entry, frame, size)
        if name in arrays:
            raise ProtocolError("bad_array", f"array '{name}' comes twice")
        arrays[name] = array
    return header, arrays


def _decode_array(entry: Any, frame: Any, size: int) -> tuple[str, NDArray[Any]]:
    if not isinstance(entry, list) or len(entry) != 3:
        raise ProtocolError("bad_array", "an array is described by name, dtype and shape")
    name, dtype_name, shape = entry
    dtype = DTYPES.get(dtype_name) if type(dtype_name) is str else None
    if type(name) is not str or dtype is None:
        raise ProtocolError("bad_array", f"an array has an unknown dtype: use one of {', '.join(DTYPES)}")
    if type(shape) is not list or len(shape) > 8:
        raise ProtocolError("bad_array", f"array '{name[:64]}' has no valid shape")
    for n in shape:
        if type(n) is not int or not 0 <= n <= MAX_MESSAGE_BYTES:
            raise ProtocolError("bad_array", f"array '{name[:64]}' has no valid shape")
    if math.prod(shape) * dtype.itemsize != size:
        raise ProtocolError(
            "bad_array", f"array '{name[:64]}' has {size} bytes, its shape and dtype say otherwise"
        )
    array = np.frombuffer(frame, dtype)
    return name, array if len(shape) == 1 else array.reshape(shape)
