"""The policy server: a ZeroMQ ROUTER in front of the engine. No torch in this process.

One thread receives, computes and replies: between two refinement steps it takes in whatever has arrived, so a
request joins at the very next step. Malformed requests get an error code and cost nobody else anything. What
is not urgent (metrics, logs, recording, loading a new bundle, WebSocket clients) lives in other threads,
which hand things over through queues or as clients of `INTERNAL`.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Event, Expired, Preview
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.protocol import ProtocolError

from . import requests
from .auth import ServerKeys
from .listen import Connections, check_bind, configure
from .metrics import Metrics
from .quota import MAX_RATE, Guard
from .recording import Recorder
from .registry import Lane, Lanes
from .replies import Header, Ticket, decision_header, hello, statistics

INTERNAL = "inproc://policy"
"""Where threads of the server's own process connect, in the server's context."""
MAX_WAITING = 1024
"""Requests taken in and not yet answered, over all clients; more wait in ZeroMQ's own bounded queues."""
MAX_RECEIVED_PER_STEP = 64
HOUSEKEEPING = 0.25
"""Seconds between looks at connections, revoked keys and models that are ready to take over."""
DRAIN_LIMIT = 10.0
"""Seconds that requests under way get when the server is told to stop."""
DRAIN_NOTICE = 0.3
"""Seconds in which a stopping server still answers, if only to say so: several periods of a control loop."""


class PolicyServer:
    """Serve models on one endpoint. Use as a context manager; `run` returns when `stop` was called and all is
    answered."""

    def __init__(
        self,
        models: Sequence[Model],
        bind: str,
        *,
        insecure: bool = False,
        keys: ServerKeys | None = None,
        max_rate: float = MAX_RATE,
        recorder: Recorder | None = None,
        busy_poll: bool = False,
        listener: int | None = None,
    ):
        """`listener` is the descriptor of a listening socket at `bind` that is shared with other processes."""
        check_bind(bind, insecure, keys is not None)
        self.metrics = Metrics()
        self.requests = self.errors = 0
        self.ready = False
        self.worker: int | None = None
        """Which of several processes behind one endpoint this is."""
        self.on_swap: Callable[[str, Contract], None] | None = None
        """Called with name and contract when a new model has taken over."""
        self._lanes = Lanes(models)
        self._keys, self._recorder, self._busy_poll = keys, recorder, busy_poll
        self._guard = Guard(max_rate)
        self._stopping = False
        self._in_flight = 0
        self._offers: deque[tuple[str, Model]] = deque()
        self._next_housekeeping = 0.0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self.context.socket(zmq.ROUTER)
        fields = [
            field for lane in self._lanes.by_name.values() for field in lane.model.contract.plant.fields
        ]
        # Twice the largest field even as float64: a frame beyond that ends its sender's connection before
        # memory is taken for it.
        largest = max(1 << 20, 16 * max((field.size for field in fields), default=0))
        self._large = largest > 1 << 20
        configure(self._socket, min(largest, protocol.MAX_MESSAGE_BYTES))
        if keys is not None:
            keys.protect(self.context, self._socket)
        try:
            self._socket.bind(INTERNAL)
            self._connections = Connections(self._socket)
            if listener is not None:
                self._socket.setsockopt(zmq.USE_FD, listener)
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(
                f"cannot listen on {bind} ({error.strerror}): is another server using it? Pass --bind with another port"
            ) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the port; replies already handed over still leave."""
        if getattr(self, "_connections", None) is not None:
            self._connections.close()
        self._socket.close(linger=500)
        if self._keys is not None:
            self._keys.close()
        self.context.term()

    def stop(self) -> None:
        """Ask `run` to answer what is under way and return; safe from a signal handler."""
        self._stopping = True

    def offer(self, name: str, model: Model) -> None:
        """Have a warmed model take over a name between two refinement steps; safe from any thread."""
        self._offers.append((name, model))

    def run(self) -> None:
        """Answer requests until stopped, then what is under way."""
        # Observations that are not finite are refused in words; numpy's own remarks on them would fill the
        # log.
        with np.errstate(invalid="ignore", over="ignore"):
            self._run()

    def _run(self) -> None:
        # What is there now stays: the collector need not walk through it between two requests.
        gc.collect()
        gc.freeze()
        self.ready = True
        while not self._stopping:
            self._turn()
        now = time.monotonic()
        notice, expiry = now + DRAIN_NOTICE, now + DRAIN_LIMIT
        # What arrives from here on is refused with `draining`, so that clients know before the socket closes
        # under a request.
        while now < expiry and (now < notice or self._in_flight or protocol.ready(self._socket, zmq.POLLIN)):
            self._turn()
            now = time.monotonic()

    def _turn(self) -> None:
        engine = self._lanes.next_busy()
        self._receive(wait=engine is None and not self._busy_poll)
        engine = engine or self._lanes.next_busy()
        now = time.monotonic()
        if engine is not None:
            rows = engine.rows
            events = engine.step()
            if engine.rows > rows:
                self.metrics.batch_rows.add(engine.rows - rows)
            for event in events:
                self._emit(event)
        if now >= self._next_housekeeping:
            self._keep_house(now)

    def _keep_house(self, now: float) -> None:
        self._next_housekeeping = now + HOUSEKEEPING
        self.metrics.connected = self._connections.count()
        if self._recorder is not None:
            self.metrics.recorder_dropped = self._recorder.dropped
        if self._keys is not None:
            self._keys.refresh()
        while self._offers:
            name, model = self._offers.popleft()
            self._lanes.by_name[name].swap(model)
            self.metrics.swaps += 1
            if self.on_swap is not None:
                self.on_swap(name, model.contract)

    # Taking in.

    def _receive(self, wait: bool) -> None:
        """Take in what has arrived, so that a request's budget runs while it waits for its turn; `wait` for
        something if idle.

        Asking the socket whether it can be read costs more system calls than reading it and failing.
        """
        flags = 0 if wait else protocol.NOBLOCK
        for _ in range(MAX_RECEIVED_PER_STEP):
            if self._in_flight >= MAX_WAITING:
                return
            try:
                client, frames = self._next_message(flags)
            except zmq.Again:
                return
            flags = protocol.NOBLOCK
            if frames is not None:
                self._take(client, frames, time.monotonic())

    def _next_message(self, flags: int) -> tuple[bytes, list[Any] | None]:
        """A message and whose it is; None for frames when its key has been revoked."""
        if self._keys is None:
            frames = protocol.receive(self._socket, flags, large=self._large)
            return frames[0], frames[1:]
        client: bytes = self._socket.recv(flags)
        parts = self._socket.recv_multipart(protocol.NOBLOCK, copy=False)
        return client, [part.buffer for part in parts] if self._keys.allows(parts[0]) else None

    def _take(self, client: bytes, frames: list[Any], received: float) -> None:
        self.requests += 1
        echo: Header = {"v": protocol.VERSION}
        operation = "malformed"
        try:
            sentence = self._guard.refuse(client, received)
            header, arrays = protocol.decode(frames)
            for key in ("id", "epoch"):
                if type(value := header.get(key)) is int:
                    echo[key] = value
            if sentence is not None:
                raise ProtocolError("busy", sentence)
            if header.get("v") != protocol.VERSION:
                raise ProtocolError("version", f"this server speaks protocol {protocol.VERSION}")
            if (asked := header.get("op")) in protocol.OPERATIONS:
                operation = asked
            self._carry_out(client, echo, header, arrays, received)
        except ProtocolError as error:
            self._refuse(client, echo, error.code, str(error))
        except ContractError as error:
            self._refuse(client, echo, "bad_observation", str(error))
        self.metrics.count_request(operation)

    def _carry_out(
        self, client: bytes, echo: Header, header: Header, arrays: requests.Arrays, received: float
    ) -> None:
        match header.get("op"):
            case "act":
                self._queue(client, echo, header, arrays, received)
                return
            case "refine":
                lane, news = self._lane(header)
                next_x, preview = lane.model.refine(*requests.read_refinement(header, arrays, lane.model))
                self._reply(client, {**echo, "ok": True, **news}, {"next_x": next_x, "preview": preview})
                return
            case "value":
                lane, news = self._lane(header)
                value, spread = lane.model.value(*requests.read_valuation(header, arrays, lane.model))
                self._reply(client, {**echo, "ok": True, **news}, {"value": value, "spread": spread})
                return
            case "hello":
                head, parts = hello(self._lanes, header.get("bundle"), records=self._recorder is not None)
                self._reply(client, {**echo, "ok": True, **head}, parts)
                return
            case "reset":
                result = {}
            case "episode":
                result = self._record_episode(header, arrays)
            case "stats":
                result = statistics(self._lanes, self.metrics) | {
                    **({} if self.worker is None else {"worker": self.worker}),
                    "ready": self.ready and not self._stopping,
                    "in_flight": self._in_flight,
                    "clients": self._guard.clients,
                }
            case "ping":
                result = {
                    "requests": self.requests,
                    "errors": self.errors,
                    "ready": self.ready and not self._stopping,
                }
            case _:
                raise ProtocolError(
                    "unknown_operation", f"this server knows {', '.join(protocol.OPERATIONS)}"
                )
        self._reply(client, {**echo, "ok": True, **result}, {})

    def _lane(self, header: Header) -> tuple[Lane, Header]:
        """The lane that a request names, and news of its contract for the client."""
        if self._stopping:
            raise ProtocolError("draining", "this server is about to stop")
        return self._lanes.agreed(header.get("bundle"), header.get("contract"))

    def _queue(
        self, client: bytes, echo: Header, header: Header, arrays: requests.Arrays, received: float
    ) -> None:
        lane, news = self._lane(header)
        ticket = Ticket(client, echo, news.get("contract_id"), lane.model)
        lane.engine.submit(requests.read_job(header, arrays, lane.model, ticket, received))
        self._guard.begin(client)
        self._in_flight += 1

    def _record_episode(self, header: Header, arrays: requests.Arrays) -> Header:
        if self._recorder is None:
            raise ProtocolError("bad_request", "this server does not record: start it with --record DIR")
        lane, news = self._lane(header)
        part = requests.read_episode(header, arrays, lane.model)
        return {"recorded": self._recorder.record_episode(part, lane.model.contract), **news}

    # Giving out.

    def _emit(self, event: Event) -> None:
        ticket: Ticket = event.job.reply_context
        if isinstance(event, Preview):
            head = {
                **ticket.echo,
                "ok": True,
                "k": event.k,
                "last": False,
                "value": event.value,
                "spread": event.spread,
            }
            self._reply(ticket.client, head, {"actions": event.actions})
            return
        self._guard.end(ticket.client)
        self._in_flight -= 1
        if isinstance(event, Expired):
            self.metrics.deadline_misses += 1
            self._refuse(
                ticket.client, ticket.echo, "expired", "the request's budget was spent before its turn came"
            )
            return
        self._decision(event, ticket)

    def _decision(self, done: Done, ticket: Ticket) -> None:
        job = done.job
        server = time.monotonic() - job.received
        self._reply(ticket.client, decision_header(done, ticket, server), {"actions": done.actions})
        metrics = self.metrics
        metrics.steps_per_reply.add(len(done.deltas))
        metrics.stages["queue"].add(done.queue)
        metrics.stages["inference"].add(done.inference)
        metrics.stages["server"].add(server)
        metrics.shortened += job.steps_reduced
        metrics.deadline_misses += job.due is not None and job.received + server > job.due
        if self._recorder is not None:
            self._recorder.record(done, ticket.model.contract, server)

    def _refuse(self, client: bytes, echo: Header, code: str, sentence: str) -> None:
        self.errors += 1
        self.metrics.count_error(code)
        self._reply(client, {**echo, "ok": False, "code": code, "error": sentence}, {})

    def _reply(self, client: bytes, header: Header, arrays: requests.Arrays) -> None:
        with contextlib.suppress(
            zmq.ZMQError
        ):  # the client is gone or does not read: its reply is its own loss
            protocol.send(self._socket, [client, *protocol.encode(header, arrays)], protocol.NOBLOCK)
