"""Structured logs: a thread takes events from a queue and writes one JSON object per line."""

from __future__ import annotations

import json
import logging
import queue
import sys
import time
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO


class JsonLines(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "event": ..., ...}` plus the record's `data` entries."""

    def __init__(self, worker: int | None = None):
        super().__init__()
        self._fixed = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        entry = {
            "time": stamp,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **self._fixed,
        }
        return json.dumps(entry | getattr(record, "data", {}), default=str)


def start_logging(stream: TextIO | None = None, *, worker: int | None = None) -> QueueListener:
    """Log the package's events to `stream` (default standard error) from a thread.

    `stop()` of the result writes what is queued. `worker` is added to every event, if given.
    """
    events: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(worker))
    logger = logging.getLogger("rql_deploy")
    logger.handlers = [QueueHandler(events)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    listener = QueueListener(events, handler)
    listener.start()
    return listener
