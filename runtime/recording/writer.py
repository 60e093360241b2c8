"""Writes the messages of a recording, and what Foxglove and Rerun draw of them, as MCAP files.

The recorder's process runs `main`: frames of msgpack come in on standard input, lines of JSON that say how
many messages were written and how many were lost go out on standard output. It ends with its input, whatever
becomes of the server.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mcap_protobuf.schema import build_file_descriptor_set
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.recording_files import SUFFIX

from .foxglove import StandardMessages, below_each_other, bgr_fields, picture
from .mcap_file import CHUNK_BYTES, McapFile
from .messages import FRAME, TOPICS, Array, Bundle, Message, Status, observation
from .protobuf import SCHEMAS, encode

FLUSH_EVERY = 0.5
"""Seconds after which messages are on the disk, however few they are."""
READ_BYTES = 1 << 16
"""Of the pipe at once."""
MAX_WAITING = 32
"""Reads ahead. From half of them on, what viewers draw is left out until the process has caught up; our own
messages never are."""
PAUSE = 0.25
"""Seconds between two rounds of writing: a process that runs often and briefly takes more of a busy machine
than its work does."""
DRAWING = 0.01
"""Share of the process's time for it: some 15 decisions a second."""
NICENESS = 5
"""The process yields to the server on a busy machine."""
_decoder = msgspec.msgpack.Decoder(Message)


class RecordingWriter:
    """Appends to files of a folder. What the disk does not take is counted, and never raised."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        *,
        shard_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        drawing: float = 1.0,
    ):
        """`drawing` is the share of the time that may go into what viewers draw."""
        self.status = Status()
        self._drawing, self._draw_at = drawing, -math.inf
        self._folder, self._prefix = folder, prefix
        self._shard_bytes, self._chunk_bytes = shard_bytes, chunk_bytes
        self._file: McapFile | None = None
        self._files = 0
        self._bundle: Bundle | None = None
        self._standard: StandardMessages | None = None
        self._bgr: set[str] = set()
        self._unwritten = 0
        """Messages that are in the file's open chunk."""
        self.flush_at: float | None = None
        """When the next flush is due, on the monotonic clock; None while all is written."""

    def begin(self) -> None:
        """Open the first file, so that a recording of nothing is one, too."""
        with self._counting_errors(0):
            self._ready_file()

    def add(self, message: Message, *, draw: bool = True) -> None:
        """Append a message, and unless told otherwise what viewers draw of it."""
        if isinstance(message, Bundle):
            self._bundle = message
            contract = Contract.from_json(message.contract)
            self._standard = StandardMessages(contract)
            self._bgr = bgr_fields(message.contract)
            if self._file is None:
                return  # Every file begins with it.
        counted = int(not isinstance(message, Bundle))
        with self._counting_errors(counted):
            files = self._files
            file = self._ready_file()
            if counted or files == self._files:
                self._append(file, message, draw)
                self._unwritten += counted
        if self._file is not None and self._file.full:
            self.flush()
        elif self._unwritten and self.flush_at is None:
            self.flush_at = time.monotonic() + FLUSH_EVERY

    def flush(self) -> None:
        """Write what has been added; where the disk is full it is kept for the next attempt."""
        self.flush_at = None
        if self._file is not None:
            with self._counting_errors(0):
                self._file.flush()
                if self._file.removed:
                    self._leave_removed(self._file)
                else:
                    self._count_written()
            if self._unwritten:
                self.flush_at = time.monotonic() + FLUSH_EVERY

    def close(self) -> None:
        """Write what is left, and the index."""
        if self._file is not None:
            file, self._file = self._file, None
            with self._counting_errors(0):
                file.close()
                self._count_written()
            self.status.lost, self._unwritten = self.status.lost + self._unwritten, 0
        self.flush_at = None

    def _leave_removed(self, file: McapFile) -> None:
        """The next message goes to a new file."""
        self._file = None
        self.status.lost, self._unwritten = self.status.lost + self._unwritten, 0
        with contextlib.suppress(OSError):
            file.close()
        raise OSError(f"{file.path} was removed while it was written")

    def _count_written(self) -> None:
        self.status.written += self._unwritten
        self.status.error, self._unwritten = "", 0

    def _ready_file(self) -> McapFile:
        """The file to append to; raises OSError where there is no room."""
        if self._file is not None and self._file.size >= self._shard_bytes:
            self.close()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            while (path := self._folder / f"{self._prefix}-{self._files:05d}{SUFFIX}").exists():
                # Servers in two containers may have the same time and process id.
                self._files += 1
            self._file = McapFile(path, self._chunk_bytes)
            self._files += 1
            if self._bundle is not None:
                self._append(self._file, self._bundle, False)
        self._file.require_room()
        return self._file

    def _append(self, file: McapFile, message: Message, draw: bool) -> None:
        nanoseconds = round(message.time * 1e9)
        fields: dict[str, NDArray[Any]] = {}
        if not isinstance(message, Bundle):
            fields = observation(message)
            message.fields = [self._place(file, message.time, array, fields) for array in message.fields]
        topic = TOPICS[type(message)]
        file.add(topic, lambda: SCHEMAS[topic], nanoseconds, encode(message))
        start = time.perf_counter()
        if self._standard is None or not draw or start < self._draw_at:
            return
        for name, drawn in self._standard(message, fields):
            file.add(name, functools.partial(_descriptors, drawn), nanoseconds, drawn.SerializeToString())
        end = time.perf_counter()
        self._draw_at = end + (end - start) * (1.0 / self._drawing - 1.0)

    def _place(self, file: McapFile, time: float, array: Array, fields: dict[str, NDArray[Any]]) -> Array:
        """The field as the message holds it: a picture goes into a message of its own before it."""
        value = fields[array.name]
        if value.dtype != np.uint8 or value.ndim not in (3, 4) or value.shape[-1] % 3 or not value.size:
            return array
        rows = below_each_other(value)
        rows = rows[..., ::-1] if array.name in self._bgr else rows
        drawn = picture(time, array.name, np.ascontiguousarray(rows))
        topic = f"/camera/{array.name}"
        data = drawn.SerializeToString()
        file.add(topic, functools.partial(_descriptors, drawn), round(time * 1e9), data)
        return Array(array.name, array.shape, picture=topic)

    @contextlib.contextmanager
    def _counting_errors(self, messages: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk, say: the next message may find room
            self.status.lost += messages
            self.status.error = str(error) or type(error).__name__


def _descriptors(message: Any) -> tuple[str, bytes]:
    descriptors = build_file_descriptor_set(type(message))
    return message.DESCRIPTOR.full_name, descriptors.SerializeToString()


def main(folder: str, prefix: str, shard_bytes: str) -> None:
    """The recorder's process."""
    # The server tells it to end by closing its input, after the last message.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    groups: queue.Queue[list[bytes] | None] = queue.Queue(MAX_WAITING)
    hurry = threading.Event()
    threading.Thread(target=_read_frames, args=(sys.stdin.fileno(), groups, hurry), daemon=True).start()
    writer = RecordingWriter(Path(folder), prefix, shard_bytes=int(shard_bytes), drawing=DRAWING)
    writer.begin()
    while True:
        wait = None if writer.flush_at is None else max(0.0, writer.flush_at - time.monotonic())
        with contextlib.suppress(queue.Empty):
            group = groups.get(timeout=wait)
            if group is None:
                break
            lost = writer.status.lost
            for frame in group:
                writer.add(_decoder.decode(frame), draw=groups.qsize() < MAX_WAITING // 2)
            if writer.status.lost != lost:
                _report(writer.status)
            if groups.empty():
                hurry.wait(PAUSE)
                hurry.clear()
        if writer.flush_at is not None and time.monotonic() >= writer.flush_at:
            writer.flush()
            _report(writer.status)
    writer.close()
    _report(writer.status)


def _read_frames(pipe: int, groups: queue.Queue[list[bytes] | None], hurry: threading.Event) -> None:
    """Hand on what comes together; `hurry` when much has come, and when nothing more will."""
    data = bytearray()
    while piece := os.read(pipe, READ_BYTES):
        data += piece
        group, start = [], 0
        while len(data) - start >= FRAME.size:
            end = start + FRAME.size + FRAME.unpack_from(data, start)[0]
            if end > len(data):
                break
            group.append(bytes(data[start + FRAME.size : end]))
            start = end
        if group:
            del data[:start]
            if groups.qsize() > MAX_WAITING // 4:
                hurry.set()
            groups.put(group)
    hurry.set()
    groups.put(None)


def _report(status: Status) -> None:
    # A server that is gone asks no more; what it sent is written all the same.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.buffer.write(msgspec.json.encode(status) + b"\n")
        sys.stdout.buffer.flush()
