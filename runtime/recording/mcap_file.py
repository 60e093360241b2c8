"""One MCAP file that is only ever appended to, whole chunks at a time.

The library makes chunks, indexes and the summary; what it writes waits in memory until a system call takes
all of it. So a full disk and a killed process leave a file that can be read up to its last chunk, and a chunk
that found no room is written when there is some.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from mcap.writer import CompressionType, Writer

import rql_deploy
from rql_deploy.recording_files import PROFILE

CHUNK_BYTES = 1 << 20
"""Size from which a chunk is compressed and written."""


class McapFile:
    """Writes messages. Every method that writes raises OSError where the disk does not take it."""

    def __init__(self, path: Path, chunk_bytes: int = CHUNK_BYTES):
        """A file that cannot be begun is removed again."""
        self.path = path
        self._output = _Output(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644))
        self._writer = Writer(self._output, chunk_size=chunk_bytes, compression=CompressionType.ZSTD)
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        try:
            self._writer.start(PROFILE, f"rql-deploy {rql_deploy.__version__}")
            self._output.commit()
        except OSError:
            self._output.close()
            path.unlink(missing_ok=True)
            raise

    @property
    def size(self) -> int:
        """Bytes, those that wait included."""
        return self._output.tell()

    def require_room(self) -> None:
        """Write what an earlier call could not."""
        self._output.commit()

    def add(
        self, topic: str, schema: Callable[[], tuple[str, bytes]], time: int, data: bytes, sequence: int = 0
    ) -> None:
        """Add a message of nanosecond `time`; `schema` gives name and descriptors for a new topic."""
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._register(topic, *schema())
        self._writer.add_message(channel, time, data, time, sequence)

    @property
    def removed(self) -> bool:
        """Whether somebody has deleted the file: nobody will see what is written to it."""
        return self._output.removed

    @property
    def full(self) -> bool:
        """Whether a chunk has its size and waits to be written."""
        return bool(self._output.waiting)

    def flush(self) -> None:
        """End the chunk and write it."""
        self._writer.flush()
        self._output.commit()

    def close(self) -> None:
        """Write what is left and the summary; the file is closed in any case."""
        try:
            self._writer.finish()
            self._output.commit()
        finally:
            self._output.close()

    def _register(self, topic: str, name: str, descriptors: bytes) -> int:
        if name not in self._schemas:
            self._schemas[name] = self._writer.register_schema(name, "protobuf", descriptors)
        return int(self._writer.register_channel(topic, "protobuf", self._schemas[name]))


class _Output:
    """What the library writes to: `commit` takes all of it to the file, or nothing."""

    def __init__(self, file: int):
        self._file, self._size = file, 0
        self.waiting = bytearray()

    @property
    def removed(self) -> bool:
        return os.fstat(self._file).st_nlink == 0

    def write(self, data: bytes) -> int:
        self.waiting += data
        return len(data)

    def tell(self) -> int:
        return self._size + len(self.waiting)

    def flush(self) -> None:
        """Chunks are written by `commit` alone."""

    def commit(self) -> None:
        if not self.waiting:
            return
        try:
            if os.write(self._file, self.waiting) < len(self.waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # Remove a chunk that is cut short, and keep it for the next attempt.
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(self.waiting)
        self.waiting.clear()

    def close(self) -> None:
        os.close(self._file)
