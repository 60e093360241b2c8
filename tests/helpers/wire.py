"""Messages of wire protocol 1 as a client in another language may write them, right or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import zmq


def raw_message(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> list[bytes]:
    """Frames of a message with that header, unchecked, and those arrays."""
    arrays = arrays or {}
    described = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    return [raw_header(**header, arrays=described), *(array.tobytes() for array in arrays.values())]


def raw_header(**entries: Any) -> bytes:
    """A header frame with these entries and no others."""
    return msgspec.msgpack.encode(entries)


def read_header(frame: bytes) -> dict[str, Any]:
    """The entries of a header frame."""
    header: dict[str, Any] = msgspec.msgpack.decode(frame)
    return header


def raw_call(endpoint: str, frames: list[bytes]) -> dict[str, Any]:
    """Send frames as they are and return the reply's header."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send_multipart(frames)
        assert socket.poll(5000), "no reply"
        return read_header(socket.recv_multipart()[0])
