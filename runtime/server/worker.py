"""A worker's process: one server on the shared listening socket, which tells the supervisor what happens and
answers its questions."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

from rql_deploy.contract import Contract
from rql_deploy.errors import DeadlineMissed, UserError

from .app import ServerConfig, Serving, serving

ASK_TIMEOUT = 1.0
"""Seconds within which a healthy worker answers."""
IDLE = 0.2
"""Seconds between looks at whether a worker is to end."""


def work(
    config: ServerConfig,
    number: int,
    listener: socket.socket,
    notices: Connection,
    asks: Connection,
    predecessors: dict[str, str],
) -> None:
    """Serve until told to stop; exits with status 2 when the server cannot start."""
    agreed = {name: Contract.from_json(text) for name, text in predecessors.items()}

    def swapped(name: str, contract: Contract) -> None:
        notices.send(("swapped", {name: contract.to_json()}))

    try:
        with (
            serving(
                config, listener=listener.fileno(), worker=number, agreed=agreed, on_swap=swapped
            ) as found,
            _answering(found, asks),
        ):
            contracts = {model.name: model.contract.to_json() for model in found.models}
            notices.send(
                (
                    "ready",
                    {
                        "task": found.models[0].contract.plant.task,
                        "contracts": contracts,
                        "notes": found.notes,
                    },
                )
            )
            found.server.run()
            notices.send(("stopped", (found.server.requests, found.server.errors)))
    except UserError as error:
        notices.send(("failed", str(error)))
        raise SystemExit(2) from None


@contextlib.contextmanager
def _answering(found: Serving, asks: Connection) -> Iterator[None]:
    """Answer the supervisor, in a thread that is a client of the engine's; stop when the supervisor is gone."""
    ended = threading.Event()

    def answer() -> None:
        channel = found.channel()
        try:
            while not ended.is_set():
                if not asks.poll(IDLE):
                    continue
                number, operation = asks.recv()
                reply = None
                with contextlib.suppress(DeadlineMissed, UserError):
                    reply = channel.call({"op": operation}, {}, ASK_TIMEOUT)[0]
                asks.send((number, reply))
        except (EOFError, OSError):
            found.server.stop()
        finally:
            channel.close()

    thread = threading.Thread(target=answer, name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Its socket must be closed before the server's context is.
        ended.set()
        thread.join()
