"""The server's side of a recording: a queue, and a thread that hands it to the writer's process.

A slow disk and the work of encoding cost no decision anything: the server's thread appends to a queue, the
recorder's thread packs a message and writes it to a pipe, the rest happens in another process (`writer.py`).
That process outlives a server that is killed, and writes what it was given.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import threading
import time
from pathlib import Path
from typing import NamedTuple

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.recording_files import SUFFIX
from rql_deploy.runtime.engine.request import Done, EpisodePart

from .messages import Bundle, Status
from .packing import messages_of
from .process import WriterProcess

SHARD_BYTES = 64 << 20
"""Size from which the next message goes to a new file."""
MAX_QUEUED = 4096
"""Records waiting to be written; more are dropped and counted, so that the server never waits."""
MAX_QUEUED_BYTES = 128 << 20
"""Bytes waiting to be written. Beyond it decisions are dropped, and senders of episodes are told to retry."""
CLOSE_LIMIT = 5.0
"""Seconds that closing waits for the disk."""
WRITE_LIMIT = 4.0
"""Seconds that the process gets at least, at the end, once it has been handed everything."""
WARN_EVERY = 10.0
"""Seconds between two warnings about failed writes."""
GATHERING = 0.05
"""Seconds from one hand-over to the next. Handed over one by one, records would take the interpreter from the
requests that follow them."""
RESTART_DELAY = 1.0
"""Seconds from one start of the writer's process to the next, should it die."""
NEEDED = ("mcap", "mcap_protobuf", "foxglove_schemas_protobuf", "PIL")
_log = logging.getLogger("rql_deploy.recorder")


class _Entry(NamedTuple):
    what: Done | EpisodePart
    contract: Contract
    server: float
    """Seconds from receipt to reply, of a decision."""
    wall: float
    """When it was queued, in seconds since 1970."""
    size: int


class Recorder:
    """Writes decisions and episodes into a folder. `record` never blocks and never raises."""

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES):
        """Raises UserError where the folder cannot be written."""
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise UserError(
                f"recording needs {missing[0]}, which is not installed",
                hint="pip install 'rql-deploy[recordings]'",
            )
        prefix = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{prefix}{SUFFIX}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot record to {folder} ({error.strerror})", hint="pass another folder"
            ) from error
        self._folder, self._prefix, self._shard_bytes = folder, prefix, shard_bytes
        self._lost, self._starts, self._warned = 0, 0, -WARN_EVERY
        self._contract: str | None = None
        self._before = Status()
        """Of processes that have died."""
        self._process: WriterProcess | None = None
        self._next_start = 0.0
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._abandoned = False
        self._enqueued_bytes = 0
        self._dequeued_bytes = 0
        # So that it has long started when the first decision is made.
        self._start()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records not written because the queue or the disk was full, or the writer's process died."""
        return self._lost + self._before.lost + (self._process.status.lost if self._process else 0)

    @property
    def written(self) -> int:
        """Messages that are on the disk."""
        return self._before.written + (self._process.status.written if self._process else 0)

    def record(self, done: Done, contract: Contract, server: float) -> None:
        """Queue one decision; `server` is seconds from receipt to reply."""
        self._enqueue(done, contract, server)

    def record_episode(self, part: EpisodePart, contract: Contract) -> bool:
        """Queue a part of an episode; False when the queue is full."""
        return self._enqueue(part, contract, 0.0)

    def _enqueue(self, what: Done | EpisodePart, contract: Contract, server: float) -> bool:
        # One counter per thread, so no lock is needed.
        size = what.nbytes
        waiting = self._enqueued_bytes - self._dequeued_bytes
        if waiting + size > MAX_QUEUED_BYTES or self._queue.qsize() >= MAX_QUEUED:
            self._lost += 1
            return False
        self._queue.put(_Entry(what, contract, server, time.time(), size))
        self._enqueued_bytes += size
        return True

    def close(self, timeout: float = CLOSE_LIMIT) -> None:
        """Hand over what is queued and wait until it is written.

        After `timeout` seconds what is still queued is dropped, and the process is left to write the rest.
        """
        expiry = time.monotonic() + timeout
        self._queue.put(None)
        self._thread.join(timeout)
        self._abandoned = True
        data = {"records": self._queue.qsize(), "folder": str(self._folder)}
        if self._thread.is_alive():
            _log.error("not recorded: the disk does not take it in time", extra={"data": data})
        elif self._process is not None and not self._process.end(max(WRITE_LIMIT, expiry - time.monotonic())):
            _log.warning("the recording is still being written", extra={"data": data})

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None and not self._abandoned:
            self._dequeued_bytes += entry.size
            last = self._queue.empty()
            try:
                self._append(entry)
            except Exception as error:  # the process died, say: the thread goes on, the record is lost
                self._lost += 1
                self._warn(str(error))
            if last and self._process is not None:
                # What a process that has ended did not take is counted when the next one is started.
                with contextlib.suppress(OSError):
                    self._process.flush()
                time.sleep(GATHERING)
        if self._process is not None:
            self._process.close_input()

    def _append(self, entry: _Entry) -> None:
        process, contract, wall = self._process, entry.contract, entry.wall
        if process is None or not process.alive:
            process = self._start()
        if self._contract != contract.contract_id:
            process.send(Bundle(wall, contract.contract_id, contract.to_json()))
            self._contract = contract.contract_id
        for message in messages_of(entry.what, contract, entry.server, wall):
            process.send(message)

    def _start(self) -> WriterProcess:
        """Start the process, which writes files of its own; raises OSError where the last start is recent."""
        if self._process is not None:
            # What it has not said to be written is lost with it.
            written = self._process.status.written
            lost = self._process.sent - written
            self._before = Status(self._before.written + written, self._before.lost + lost)
            self._process.close_input()
            self._process = None
        if time.monotonic() < self._next_start:
            raise OSError("the process that writes the recording has ended")
        self._next_start, self._contract = time.monotonic() + RESTART_DELAY, None
        prefix = f"{self._prefix}-{self._starts:02d}"
        self._starts += 1
        self._process = WriterProcess(self._folder, prefix, self._shard_bytes, self._warn)
        return self._process

    def _warn(self, reason: str) -> None:
        if time.monotonic() - self._warned > WARN_EVERY:
            self._warned = time.monotonic()
            _log.warning("cannot record", extra={"data": {"error": reason, "dropped": self.dropped}})
