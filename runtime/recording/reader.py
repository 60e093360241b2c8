"""Reads the messages of a recording back, in the order in which they were written.

A file that was cut short, by a crash or because it is still written, is read up to its last whole chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rql_deploy.errors import UserError
from rql_deploy.recording_files import MAGIC, recording_files

from .messages import MESSAGES, Array, Bundle, Message, misfit

MAX_RECORD_BYTES = 1 << 30
CAMERAS = "/camera/"
"""Begin of the topics of pictures."""


def read_recording(path: Path) -> Iterator[Message]:
    """Messages of a file, or of all files in a folder, oldest file first.

    Raises UserError where there is no recording, or one is damaged.
    """
    for file in recording_files(path):
        yield from read_file(file)


def read_file(path: Path) -> Iterator[Message]:
    """Messages of one file; stops before a chunk that was cut short.

    Raises UserError when the file is not a recording, or a chunk in it is damaged.
    """
    from google.protobuf.message import DecodeError
    from mcap.records import Channel
    from mcap.records import Message as Entry
    from mcap.stream_reader import breakup_chunk

    from .protobuf import decode

    recording_files(path)
    topics: dict[int, str] = {}
    pictures: dict[str, bytes] = {}
    bgr: set[str] = set()
    with path.open("rb") as stream:
        for chunk, end in _chunks(path, stream):
            try:
                for entry in breakup_chunk(chunk, validate_crc=True):
                    if isinstance(entry, Channel):
                        topics[entry.id] = entry.topic
                    elif isinstance(entry, Entry):
                        topic = topics[entry.channel_id]
                        if topic in MESSAGES:
                            message = decode(entry.data, MESSAGES[topic])
                            if isinstance(message, Bundle):
                                bgr = _bgr_fields(message)
                            else:
                                message.fields = [_whole(field, pictures, bgr) for field in message.fields]
                            if what := misfit(message):
                                raise ValueError(f"the numbers of {what} do not fit")
                            yield message
                        elif topic.startswith(CAMERAS):
                            pictures[topic] = entry.data
            except (DecodeError, *_damage()) as error:
                raise _damaged(path, end, error) from error


def _chunks(path: Path, stream: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """Each whole chunk, and where it ends."""
    from mcap.data_stream import ReadDataStream
    from mcap.opcode import Opcode
    from mcap.records import Chunk

    size, place = os.fstat(stream.fileno()).st_size, len(MAGIC)
    while place + 9 <= size:
        stream.seek(place)
        opcode, length = stream.read(1)[0], int.from_bytes(stream.read(8), "little")
        if not Opcode.HEADER <= opcode <= Opcode.DATA_END or length > MAX_RECORD_BYTES:
            raise UserError(f"{path} is damaged at byte {place:,}", hint="use a copy")
        if opcode == Opcode.MESSAGE:
            raise UserError(
                f"{path} has messages outside chunks, as another tool wrote it",
                hint="use the file it was made of",
            )
        place += 9 + length
        if place > size:
            stream.seek(size - len(MAGIC))
            if stream.read() == MAGIC:
                raise UserError(f"{path} is damaged: a length in it is beyond its end", hint="use a copy")
            return
        if opcode == Opcode.DATA_END:
            return
        if opcode == Opcode.CHUNK:
            try:
                chunk = Chunk.read(ReadDataStream(stream))
            except _damage() as error:
                raise _damaged(path, place, error) from error
            yield chunk, place


def _whole(field: Array, pictures: dict[str, bytes], bgr: set[str]) -> Array:
    """The field with its bytes, where a picture holds them."""
    if not field.picture:
        return field
    from .foxglove import pixels, stacked_again

    rows = pixels(pictures[field.picture])
    rows = rows[..., ::-1] if field.name in bgr else rows
    return Array(field.name, field.shape, data=stacked_again(rows, field.shape).tobytes())


def _bgr_fields(bundle: Bundle) -> set[str]:
    from .foxglove import bgr_fields

    return bgr_fields(bundle.contract)


def _damaged(path: Path, end: int, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged before byte {end:,} ({str(error) or type(error).__name__})",
        hint="use a copy, or `mcap recover FILE -o NEW`",
    )


def _damage() -> tuple[type[Exception], ...]:
    import struct

    from mcap.exceptions import McapError
    from zstandard import ZstdError

    # A length that is wrong asks for more memory than there is.
    return (McapError, ZstdError, ValueError, LookupError, struct.error, OSError, MemoryError, OverflowError)
