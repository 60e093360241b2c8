"""openpi's WebSocket protocol, for robots that use the `openpi-client` package.

After connecting, the server sends a map of metadata. Every binary message is then an observation (a map of
named arrays), and the reply is a map with `actions` `[h, A]`, or a text that says why there are none:
openpi's client raises it as an error, and may ask again. The protocol has no deadlines, request ids or
contracts; prefer `rql_deploy.runtime.client`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.client.session import DEFAULT_TIMEOUT, Session
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import Act, ActReply, Hello
from rql_deploy.runtime.wire.protocol import MAX_MESSAGE_BYTES

from .listen import open_listener
from .openpi_messages import pack, read_observation

MAX_CONNECTIONS = 64
GREETINGS = 10
"""Times that a connection asks for the contract before it gives the server up."""
BUSY_PAUSE = 0.5
"""Seconds between two of them, where the client's quota is used up."""
CLOSE_LIMIT = 1.0
"""Seconds that all clients together get to answer the close frame when the server stops."""
_log = logging.getLogger("rql_deploy.openpi")
# Port scans and clients that vanish are not worth a traceback each.
_library_log = logging.getLogger("rql_deploy.openpi.websockets")
_library_log.setLevel(logging.CRITICAL + 1)


class Keepalive(NamedTuple):
    """Pings to clients, so that one that vanished gives its place up."""

    interval: float | None = 20.0
    """Seconds between two pings; None for no pings."""
    timeout: float | None = 20.0
    """Seconds within which a client must answer; None for no limit."""

    @classmethod
    def parse(cls, text: str) -> Keepalive:
        """`INTERVAL[:TIMEOUT]` in seconds, the time-out as long as the interval by default; 0 for no pings.

        Raises UserError.
        """
        first, _, second = text.partition(":")
        try:
            interval, timeout = float(first), float(second or first)
        except ValueError:
            interval = timeout = -1.0
        if not (interval == 0.0 or (0.1 <= interval <= 86400.0 and 0.1 <= timeout <= 86400.0)):
            raise UserError(
                f"--openpi-keepalive takes INTERVAL[:TIMEOUT] in seconds, not '{text}'",
                hint="try 20, 5:60 or, for no pings, 0",
            )
        return cls(interval or None, timeout or None)


class OpenpiEndpoint:
    """A WebSocket server; each of its connections is a client of this process's policy server."""

    def __init__(
        self,
        channel: Callable[[str], Channel],
        host: str,
        port: int,
        *,
        shared: bool = False,
        keepalive: Keepalive = Keepalive(),  # noqa: B008
    ):
        """
        Args:
            channel: connects to the policy server for a client at that address.
            shared: other workers listen on the same port.

        Raises UserError when the port is taken.
        """
        self._connect, self._keepalive = channel, keepalive
        self._listener = open_listener("--openpi", host, port, reuse_port=shared)
        self.port = int(self._listener.getsockname()[1])
        self._clients: dict[ServerConnection, _Client] = {}
        self._workers: set[ThreadPoolExecutor] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openpi", daemon=True)
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """End all connections, all at once."""
        with contextlib.suppress(RuntimeError):  # its event loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        # They use the server's ZeroMQ context; no call of theirs takes longer than its timeout.
        for worker in list(self._workers):
            worker.shutdown()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await serve(
            self._serve_connection,
            sock=self._listener,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            # A client waits for its reply before it sends again.
            max_queue=1,
            # A web page in a browser on this machine must not connect; openpi's client sends no origin.
            origins=[None],
            process_request=_answer_probe,
            ping_interval=self._keepalive.interval,
            ping_timeout=self._keepalive.timeout,
            close_timeout=CLOSE_LIMIT,
            logger=_library_log,
        )
        self._started.set()
        await self._stop.wait()
        server.close(close_connections=False)
        closing = []
        for connection, client in self._clients.items():
            client.ended = True
            closing.append(asyncio.ensure_future(connection.close(CloseCode.GOING_AWAY, "the server stops")))
        if closing:
            await asyncio.wait(closing, timeout=2 * CLOSE_LIMIT)
        # What is left, unfinished handshakes among it, is cancelled as the event loop ends.

    async def _serve_connection(self, connection: ServerConnection) -> None:
        if len(self._clients) >= MAX_CONNECTIONS:
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too many connections")
            return
        # A channel blocks.
        worker = ThreadPoolExecutor(1, "openpi")
        client = _Client(functools.partial(self._connect, connection.remote_address[0]))
        self._workers.add(worker)
        self._clients[connection] = client
        call = functools.partial(self._loop.run_in_executor, worker)
        try:
            await connection.send(await call(client.greet))
            async for message in connection:
                start = time.monotonic()
                await connection.send(await call(client.answer, message))
                client.previous_total = time.monotonic() - start
        except ConnectionClosed:
            pass
        except Exception as error:  # costs this client its connection, and nobody else anything
            _log.exception("openpi connection failed")
            with contextlib.suppress(ConnectionClosed):
                await connection.send(f"{type(error).__name__}: {error}")
                await connection.close(CloseCode.INTERNAL_ERROR, "the reason is in the previous frame")
        finally:
            client.ended = True
            del self._clients[connection]
            worker.submit(client.close).add_done_callback(lambda _: self._workers.discard(worker))
            worker.shutdown(wait=False)


def _answer_probe(connection: ServerConnection, request: Request) -> Response | None:
    """`/healthz` as openpi's server answers it; None for what may become a WebSocket."""
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


class _Client:
    """The policy server's side of one connection; its methods run in one thread."""

    def __init__(self, connect: Callable[[], Channel]):
        self.ended = False
        """Whether nobody waits for an answer any more."""
        self.previous_total: float | None = None
        """Seconds that the previous message took, until its reply was sent."""
        self._connect = connect
        self._channel: Channel | None = None
        self._session: Session | None = None

    def greet(self) -> bytes:
        """The metadata; waits for a server that is still warming up."""
        if self._channel is None:
            self._channel = self._connect()
        for attempt in range(GREETINGS):
            try:
                hello = self._channel.call(Hello(), {}, DEFAULT_TIMEOUT)
                break
            except (DeadlineMissed, ServerError) as error:
                if self.ended or attempt + 1 == GREETINGS:
                    raise
                if isinstance(error, ServerError):
                    if error.code != "busy":
                        raise
                    time.sleep(BUSY_PAUSE)
        previous = None if self._session is None else self._session.contract
        self._session = Session("this server", hello, None, previous)
        return pack(_metadata(self._session))

    def answer(self, message: str | bytes) -> bytes | str:
        """The reply to an observation: a map, or why it is refused."""
        try:
            try:
                reply, chunk = self._act(message)
            except ServerError as error:
                if error.code != "contract_changed":
                    raise
                # A bundle for the same plant has taken over, and lays an observation out differently.
                self.greet()
                reply, chunk = self._act(message)
        except (DeadlineMissed, UserError) as error:
            _log.info("openpi observation refused", extra={"data": {"reason": str(error)}})
            return str(error)
        inference = {"infer_ms": (reply.timing or {}).get("inference", 0.0) * 1e3}
        total = {} if self.previous_total is None else {"prev_total_ms": self.previous_total * 1e3}
        return pack({"actions": chunk, "server_timing": inference | total, "policy_timing": inference})

    def _act(self, message: str | bytes) -> tuple[ActReply, NDArray[np.float32]]:
        assert self._channel is not None and self._session is not None
        fields = self._session.pack(read_observation(message, self._session.contract))
        request = Act(contract=self._session.contract_id, budget=DEFAULT_TIMEOUT)
        reply, out = self._channel.call(request, fields, DEFAULT_TIMEOUT)
        return reply, self._session.chunk(out)

    def close(self) -> None:
        """Disconnect from the policy server."""
        if self._channel is not None:
            self._channel.close()


def _metadata(session: Session) -> dict[str, Any]:
    contract = session.contract
    return {
        "contract_id": contract.contract_id,
        "task": contract.plant.task,
        "control_rate": contract.plant.control_rate,
        "action_horizon": contract.h,
        "action_dim": contract.plant.action_dim,
        "observation": {
            field.name: {"shape": list(field.shape), "dtype": field.dtype, "unit": field.unit}
            for field in contract.plant.inputs
        },
        "actions": [action.name for action in contract.plant.actions],
    }
