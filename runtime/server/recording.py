"""Recordings of decisions and episodes in append-only shards, written by a thread of its own.

A shard is the line `RQLREC1` followed by records: length (u32), CRC-32 (u32), both little-endian, and that
many bytes of msgpack. The first record is a contract, and so is one after every swap to another bundle; the
others are decisions and parts of episodes (observations, actions, rewards and success as control loops report
them). No file is ever rewritten. A crash can only cut the last record short; readers stop before it.

`replay` computes a recorded decision again. On one build and one CPU, the same seed, observation and deltas
give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.prefix import Prefix
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, EpisodePart, Job

MAGIC = b"RQLREC1\n"
SHARD_BYTES = 64 << 20
"""Size from which the next record goes to a new shard."""
MAX_QUEUED = 4096
"""Records waiting to be written; more are dropped and counted, so that the server never waits."""
MAX_QUEUED_BYTES = 128 << 20
"""Bytes waiting to be written. Beyond it decisions are dropped, and senders of episodes are told to retry."""
MAX_RECORD_BYTES = 256 << 20
CLOSE_LIMIT = 5.0
"""Seconds that closing waits for the disk."""
WARN_EVERY = 10.0
"""Seconds between two warnings about failed writes."""
_HEAD = struct.Struct("<II")
_log = logging.getLogger("rql_deploy.recorder")

Record = dict[str, Any]


class Recorder:
    """Writes decisions and episodes in a thread of its own. `record` never blocks and never raises."""

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES):
        self.dropped = 0
        """Records not written because the queue or the disk was full."""
        self.written = 0
        self._folder, self._shard_bytes = folder, shard_bytes
        self._prefix = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._shards, self._size, self._warned = 0, 0, -WARN_EVERY
        self._contract: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise UserError(
                f"cannot record to {folder} ({error.strerror})", hint="pass another folder"
            ) from error
        self._queue: queue.Queue[tuple[Done | EpisodePart, Contract, float, float] | None] = queue.Queue(
            MAX_QUEUED
        )
        self._abandoned = False
        self._enqueued_bytes = 0
        self._dequeued_bytes = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def record(self, done: Done, contract: Contract, server: float) -> None:
        """Queue one decision; `server` is seconds from receipt to reply."""
        self._enqueue(done, contract, server)

    def record_episode(self, part: EpisodePart, contract: Contract) -> bool:
        """Queue a part of an episode; False when the queue is full."""
        return self._enqueue(part, contract, 0.0)

    def _enqueue(self, what: Done | EpisodePart, contract: Contract, server: float) -> bool:
        # One counter per thread, so no lock is needed.
        size = _size(what)
        if self._enqueued_bytes - self._dequeued_bytes + size > MAX_QUEUED_BYTES:
            self.dropped += 1
            return False
        try:
            self._queue.put_nowait((what, contract, server, time.time()))
        except queue.Full:
            self.dropped += 1
            return False
        self._enqueued_bytes += size
        return True

    def close(self, timeout: float = CLOSE_LIMIT) -> None:
        """Write what is queued, then close the shard; what a slow disk has not taken in time is dropped."""
        expiry = time.monotonic() + timeout
        # The queue may be full and its thread held up by the disk: neither may hold up the caller.
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
        self._thread.join(timeout=max(0.0, expiry - time.monotonic()))
        self._abandoned = True
        if self._thread.is_alive():
            data = {"records": self._queue.qsize(), "folder": str(self._folder)}
            _log.error("not recorded: the disk does not take it in time", extra={"data": data})

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None and not self._abandoned:
            self._dequeued_bytes += _size(entry[0])
            try:
                self._append(*entry)
                self.written += 1
            except Exception as error:  # a full disk, say: the thread goes on, the record is lost
                self.dropped += 1
                if time.monotonic() - self._warned > WARN_EVERY:
                    self._warned = time.monotonic()
                    _log.warning(
                        "cannot record", extra={"data": {"error": str(error), "dropped": self.dropped}}
                    )
        os.close(self._file)

    def _append(self, what: Done | EpisodePart, contract: Contract, server: float, wall: float) -> None:
        if self._size >= self._shard_bytes:
            following = self._open()
            os.close(self._file)
            self._file = following
        if self._contract != contract.contract_id:
            self._write(
                {"kind": "contract", "contract_id": contract.contract_id, "contract": contract.to_json()}
            )
            self._contract = contract.contract_id
        if isinstance(what, EpisodePart):
            self._write(_part_to_plain(what, contract, wall))
        else:
            self._write(_to_plain(what, contract, server, wall))

    def _open(self) -> int:
        path = self._folder / f"{self._prefix}-{self._shards:05d}.rqlrec"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            if os.write(file, MAGIC) < len(MAGIC):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # On a full disk this is tried again for every record: leave no empty shard and no open descriptor
            # behind.
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._shards += 1
        self._contract, self._size = None, len(MAGIC)
        return file

    def _write(self, record: Record) -> None:
        data = msgspec.msgpack.encode(record)
        whole = _HEAD.pack(len(data), zlib.crc32(data)) + data
        try:
            if os.write(self._file, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(whole)
        except OSError:
            # Remove a record that is cut short: it would hide those after it.
            os.ftruncate(self._file, self._size)
            raise


def _to_plain(done: Done, contract: Contract, server: float, wall: float) -> Record:
    job = done.job
    return {
        "kind": "decision",
        "time": wall,
        "contract_id": contract.contract_id,
        "client": getattr(job.reply_context, "client", b"").hex(),
        "fields": {name: _pack(value[0]) for name, value in job.fields.items()},
        "seed": job.seed,
        "candidates": job.candidates,
        "candidate": done.candidate,
        "compared": done.candidates_scored,
        "pruned": job.pruned,
        "deltas": done.deltas,
        "budget": None if job.due is None else job.due - job.received,
        "timing": {"queue": done.queue, "inference": done.inference, "server": server},
        "continuation": _continuation_to_plain(job),
        "actions": _pack(done.actions),
        "value": done.value,
        "spread": done.spread,
    }


def _continuation_to_plain(job: Job) -> Record | None:
    """What the chunk continued, and how."""
    if (going_on := job.continuation) is None:
        return None
    return {
        "method": going_on.method,
        "committed": going_on.committed,
        "prefix": _pack(going_on.actions),
    }


def _prefix(record: Record) -> Prefix | None:
    if (found := record.get("continuation")) is None:
        return None
    return Prefix(_unpack(found["prefix"]), found["committed"], found["method"])


def _part_to_plain(part: EpisodePart, contract: Contract, wall: float) -> Record:
    return {
        "kind": "episode",
        "time": wall,
        "contract_id": contract.contract_id,
        "epoch": part.epoch,
        "episode": part.episode,
        "tick": part.tick,
        "end": part.end,
        "fields": {name: _pack(value) for name, value in part.fields.items()},
        "actions": _pack(part.actions),
        "rewards": None if part.rewards is None else _pack(part.rewards),
        "success": None if part.success is None else part.success.tolist(),
        "intervened": None if part.intervened is None else part.intervened.tolist(),
    }


def _pack(array: NDArray[Any]) -> list[Any]:
    if array.dtype == np.uint8:
        return [list(array.shape), array.tobytes(), "uint8"]
    return [list(array.shape), np.ascontiguousarray(array, "<f4").tobytes()]


def _unpack(entry: Any) -> NDArray[Any]:
    shape, data, *dtype = entry
    return np.frombuffer(data, "uint8" if dtype else "<f4").reshape(shape)


def read_shard(path: Path) -> Iterator[Record]:
    """Records of one shard in order, with float32 or uint8 arrays; stops before a record that was cut short.

    Raises UserError when the file is not a shard, or a record in it is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(
                f"{path} is not a recording",
                hint="pass a .rqlrec file or a folder that `serve --record` wrote",
            )
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            data = file.read(length) if length <= MAX_RECORD_BYTES else b""
            if len(data) < length <= MAX_RECORD_BYTES:
                return
            if length > MAX_RECORD_BYTES or zlib.crc32(data) != checksum:
                raise UserError(
                    f"{path} is damaged after {file.tell()} bytes",
                    hint="use the records before it, or a copy",
                )
            record: Record = msgspec.msgpack.decode(data)
            if record["kind"] in ("decision", "episode"):
                record["fields"] = {name: _unpack(entry) for name, entry in record["fields"].items()}
                record["actions"] = _unpack(record["actions"])
            if record["kind"] == "episode":
                record["rewards"] = None if record["rewards"] is None else _unpack(record["rewards"])
                for name in ("success", "intervened"):
                    flags = record.get(name)
                    record[name] = None if flags is None else np.array(flags, np.bool_)
            yield record


def read_recording(path: Path) -> Iterator[Record]:
    """Records of a shard or of all shards in a folder, oldest first."""
    shards = sorted(path.glob("*.rqlrec")) if path.is_dir() else [path]
    if not shards or not shards[0].is_file():
        raise UserError(
            f"there is no recording at {path}",
            hint="pass a .rqlrec file or a folder that `serve --record` wrote",
        )
    for shard in shards:
        yield from read_shard(shard)


def _size(what: Done | EpisodePart) -> int:
    return (
        what.nbytes
        if isinstance(what, EpisodePart)
        else sum(value.nbytes for value in what.job.fields.values())
    )


def replay(model: Model, record: dict[str, Any]) -> Done:
    """Compute the decision of one record again from its seed, observation, deltas and candidate.

    Raises UserError when the record was made with another contract.
    """
    if record["contract_id"] != model.contract.contract_id:
        raise UserError(
            f"the recording was made with contract {record['contract_id'][:12]}, "
            f"the bundle has {model.contract.contract_id[:12]}",
            hint="pass the bundle that was served",
        )
    engine = Engine(model)
    engine.submit(
        Job(
            reply_context=None,
            fields=model.rows(record["fields"]),
            seed=record["seed"],
            received=time.monotonic(),
            value=record["value"] is not None,
            candidate_offset=record["candidate"],
            deltas=tuple(record["deltas"]),
            continuation=model.continuation(_prefix(record)),
        )
    )
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Done):
                return event
    raise AssertionError("the engine ended without a decision")


def same_bytes(record: dict[str, Any], done: Done) -> bool:
    """Whether actions, V and spread are the recorded ones to the bit."""
    return bool(
        record["actions"].tobytes() == done.actions.tobytes()
        and (record["value"], record["spread"]) == (done.value, done.spread)
    )
