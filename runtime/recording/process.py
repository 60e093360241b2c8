"""The process that writes a recording, as the server sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from .messages import FRAME, Bundle, Message, Status

BUFFERED_BYTES = 1 << 16
"""Messages that are handed over without a `flush`."""
_encoder = msgspec.msgpack.Encoder()


class WriterProcess:
    """Starts it, sends it messages, and reads what it says of them."""

    def __init__(self, folder: Path, prefix: str, shard_bytes: int, on_error: Callable[[str], None]):
        """`on_error` is called, in a thread of its own, with why a message was lost."""
        self.status = Status()
        self.sent = 0
        """Messages it was handed, contracts not counted."""
        self._on_error = on_error
        # It imports from where this process does, and nothing from the folder it is in.
        paths = [path or os.getcwd() for path in sys.path]
        program = (
            f"import sys; sys.path[:] = {paths!r}; from {__package__}.writer import main; main(*sys.argv[1:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder.absolute()), prefix, str(shard_bytes)],
            bufsize=BUFFERED_BYTES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._thread = threading.Thread(target=self._listen, name="recorder status", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def send(self, message: Message) -> None:
        """Hand it a message, with the next `flush` at the latest.

        Waits while it has many. Raises OSError when it has ended.
        """
        data = _encoder.encode(message)
        assert self._process.stdin is not None
        self._process.stdin.write(FRAME.pack(len(data)) + data)
        self.sent += not isinstance(message, Bundle)

    def flush(self) -> None:
        """Hand it what was sent. Raises OSError when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.flush()

    def close_input(self) -> None:
        """Have it end once it has written what it was sent."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()

    def end(self, timeout: float) -> bool:
        """Wait for its end; returns whether it came. Otherwise the process goes on until all is written."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._thread.join(timeout)
        return True

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(msgspec.MsgspecError):
                self.status = msgspec.json.decode(line, type=Status)
            if self.status.error:
                self._on_error(self.status.error)
        self._process.stdout.close()
        self._process.poll()
