"""Messages of wire protocol 2 as a client in another language may write them, right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import zmq

from rql_deploy.contract import ObservationField
from rql_deploy.runtime.wire import headers, protocol

KINDS = {
    name: number
    for number, name in enumerate(
        ("hello", "act", "refine", "value", "reset", "episode", "stats", "ping", "act_many"), 1
    )
}

LAYOUT = protocol.Layout([ObservationField("image", (2, 3), dtype="uint8"), ObservationField("state", (3,))])
OBSERVATION = LAYOUT.pack({"image": np.arange(6).reshape(2, 3), "state": np.arange(3)})
"""Of a contract with these two fields."""


def raw_message(
    operation: str | int,
    header: Mapping[str, Any] | bytes = {},
    *blocks: np.ndarray | bytes,
    id: int = 1,
    epoch: int = 1,
    version: int = 2,
    named: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """A message with that header, unchecked, with the arrays `named`, and with these arrays as its block."""
    kind = KINDS[operation] if isinstance(operation, str) else operation
    named = named or {}
    if not isinstance(header, bytes):
        described = [[name, array.dtype.name, list(array.shape)] for name, array in named.items()]
        header = msgspec.msgpack.encode({**header, "arrays": described} if named else {**header})
    frame = struct.pack("<3sBBxHQQ", b"RQL", version, kind, len(header), id, epoch) + header
    for array in named.values():
        frame = aligned(frame) + array.tobytes()
    return aligned(frame) + b"".join(bytes(block) for block in blocks) if blocks else frame


def aligned(frame: bytes) -> bytes:
    """The frame with zeros up to where an array may begin."""
    return frame + bytes(-len(frame) % 16)


def read_prefix(frame: bytes) -> tuple[int, int, int, int]:
    """Version, kind, id and epoch of a message."""
    magic, version, kind, _, id, epoch = struct.unpack_from("<3sBBxHQQ", frame)
    assert magic == b"RQL"
    return version, kind, id, epoch


def read_header(frame: bytes) -> dict[str, Any]:
    """The entries of a message's header."""
    (length,) = struct.unpack_from("<H", frame, 6)
    header: dict[str, Any] = msgspec.msgpack.decode(frame[24 : 24 + length])
    return header


def raw_call(endpoint: str, *frames: bytes) -> bytes:
    """Send frames as one message, as they are, and return the reply's only frame."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send_multipart(frames)
        assert socket.poll(5000), "no reply"
        (reply,) = socket.recv_multipart()
        return reply


def read_request(frame: Any) -> tuple[headers.Request[Any], Any, Any]:
    """Header, fields and named arrays of a request, as a server of `LAYOUT` reads it."""
    head = protocol.decode(frame)
    request = protocol.decode_request(head)
    layout = LAYOUT if isinstance(request, headers.ObservationRequest) else None
    return request, *protocol.request_arrays(head, request, layout)
