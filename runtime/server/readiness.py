"""Tells whoever started the server that it is ready, that it lives, and that it stops.

`--ready-fd` writes one line of JSON to a descriptor that the parent opened, so that nobody need read the
output for a sentence. systemd is told by its own protocol, sd_notify: datagrams to the socket that
NOTIFY_SOCKET names (https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rql_deploy.errors import UserError

STANDARD_DESCRIPTORS = 3
"""Input, output and errors, which stay open."""
PINGS_PER_LIMIT = 2
"""Signs of life within the time after which systemd gives a service up; it recommends two."""
SHORTEST_PAUSE = 0.01
"""Seconds between two questions, whatever the limit is."""
READY_PATIENCE = 2.0
"""Seconds to wait for room in systemd's queue."""
RETRIES_PER_LIMIT = 8
"""How often the server is asked again within that time while it does not answer."""


def check_descriptor(descriptor: int | None) -> None:
    """Raise UserError unless the parent has opened that descriptor, for writing and for nothing else."""
    if descriptor is None:
        return
    try:
        if descriptor < STANDARD_DESCRIPTORS:
            raise OSError(0, "it is the input, the output or the errors")
        os.write(descriptor, b"")
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no descriptor has such a number"
        raise UserError(
            f"--ready-fd {descriptor} cannot be written to ({reason})",
            hint="open a pipe and pass the number of its end that the server inherits",
        ) from error


def announce(descriptor: int | None, ready: Mapping[str, Any]) -> None:
    """Write what listens where as one line of JSON, and close the descriptor. A reader may be gone."""
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps(ready).encode() + b"\n")
        with contextlib.suppress(OSError):
            os.close(descriptor)


class ServiceManager:
    """systemd, or nobody: then nothing is sent."""

    def __init__(self, environment: Mapping[str, str] | None = None):
        """What systemd says in the `environment`, this process's own if None."""
        told = os.environ if environment is None else environment
        self._address = told.get("NOTIFY_SOCKET", "")
        self.limit = 0.0
        """Seconds without a sign of life after which it gives this process up; 0 for never."""
        if told.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with contextlib.suppress(ValueError, OverflowError):
                limit = int(told.get("WATCHDOG_USEC", "0")) * 1e-6
                # systemd's largest number means for ever, too.
                self.limit = limit if 0.0 < limit < threading.TIMEOUT_MAX else 0.0

    def tell(self, *assignments: str, patience: float = 0.0) -> bool:
        """Send state such as `READY=1`; whether there was anybody to take it.

        `patience` is how many seconds it may wait for room.
        """
        if not self._address.startswith(("/", "@")):
            return False
        # A leading @ is an abstract address.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(patience)
            datagrams.sendto("\n".join(assignments).encode(), address)
            return True
        return False

    @contextlib.contextmanager
    def watching(self, status: str, healthy: Callable[[], bool]) -> Iterator[None]:
        """Within the block the service is ready, and its watchdog hears of it while it is `healthy`.

        `healthy` is called in a thread of its own, and may take a second.
        """
        # It is said once: lost, systemd would end the service.
        self.tell("READY=1", f"STATUS={status}", patience=READY_PATIENCE)
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(healthy, ended), name="watchdog", daemon=True)
        if self.limit:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            self.tell("STOPPING=1", "STATUS=stopping")
            if self.limit:
                thread.join()

    def _watch(self, healthy: Callable[[], bool], ended: threading.Event) -> None:
        while True:
            well = healthy()
            if well:
                self.tell("WATCHDOG=1")
            pause = self.limit / (PINGS_PER_LIMIT if well else RETRIES_PER_LIMIT)
            if ended.wait(max(SHORTEST_PAUSE, pause)):
                return
