"""A worker process: one server on the shared socket, which reports to the supervisor."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import zmq

from rql_deploy.contract import Contract
from rql_deploy.errors import DeadlineMissed, UserError

from .app import RunningServer, ServerConfig, serving

QUERY_TIMEOUT = 1.0
"""Seconds within which a healthy worker answers a query."""
POLL_INTERVAL = 0.2
"""Seconds between checks whether the worker ends."""


def run_worker(
    config: ServerConfig,
    number: int,
    listener: socket.socket,
    notices: Connection,
    queries: Connection,
    predecessors: dict[str, str],
) -> None:
    """Serve until told to stop; exits with status 2 when the server cannot start."""
    known_contracts = {name: Contract.from_json(text) for name, text in predecessors.items()}

    def swapped(name: str, contract: Contract) -> None:
        notices.send(("swapped", {name: contract.to_json()}))

    try:
        with (
            serving(
                config,
                listener=listener.fileno(),
                worker=number,
                known_contracts=known_contracts,
                on_swap=swapped,
            ) as running,
            _answer_queries(running, queries),
        ):
            contracts = {model.name: model.contract.to_json() for model in running.models}
            notices.send(
                (
                    "ready",
                    {
                        "task": running.models[0].contract.plant.task,
                        "contracts": contracts,
                        "notes": running.notes,
                        "openpi": running.openpi,
                    },
                )
            )
            running.server.run()
            notices.send(("stopped", (running.server.requests, running.server.errors)))
    except UserError as error:
        notices.send(("failed", (error.kind, str(error))))
        raise SystemExit(2) from None


@contextlib.contextmanager
def _answer_queries(running: RunningServer, queries: Connection) -> Iterator[None]:
    """Within the block, answer the supervisor's queries; stop the server when the supervisor is gone."""
    ended = threading.Event()

    def answer() -> None:
        channel = running.channel()
        try:
            while not ended.is_set():
                if not queries.poll(POLL_INTERVAL):
                    continue
                number, operation = queries.recv()
                reply = None
                with contextlib.suppress(DeadlineMissed, UserError, zmq.ZMQError):
                    reply = channel.ask(operation, QUERY_TIMEOUT)
                queries.send((number, reply))
        except (EOFError, OSError):
            running.server.stop()
        finally:
            channel.close()

    thread = threading.Thread(target=answer, name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # The thread's socket must be closed before the server's context.
        ended.set()
        thread.join()
