"""The policy server: a ZeroMQ ROUTER socket in front of the engine, without torch.

One thread receives, computes and replies. Between two refinement steps it receives what has arrived, so a
request joins the batch at the next step. A malformed request gets an error code and does not affect other
clients. Metrics, logs, recording, loading of new bundles and WebSocket clients run in other threads; they use
queues, or are clients of `INTERNAL`.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.runtime.engine.history import History
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Computed, Done, Event, Expired, Preview, Task
from rql_deploy.runtime.engine.shares import Client
from rql_deploy.runtime.recording.recorder import Recorder
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.arrays import Packed
from rql_deploy.runtime.wire.checks import ProtocolError
from rql_deploy.runtime.wire.protocol import Head, Payload

from . import requests
from .auth import ServerKeys
from .connections import MAX_BUFFERED, Connections, is_gone
from .inbox import Inbox
from .jpeg import JpegDecoder
from .listen import bind_socket, cannot_listen, check_bind, configure
from .metrics import Metrics
from .quota import MAX_RATE, Quota, key_of
from .registry import ModelRegistry
from .replies import NO_ECHO, Echo, ReplyContext, ServerState, answer, computed, outcome

INTERNAL = "inproc://policy"
"""Endpoint for threads of the server's process, in the server's ZeroMQ context."""
HOUSEKEEPING = 0.25
"""Seconds between checks for models that are ready to be swapped in, and updates of counts."""
DRAIN_LIMIT = 10.0
"""Seconds for running requests to finish when the server stops."""
DRAIN_NOTICE = 0.3
"""Seconds in which a stopping server still replies `draining`: several periods of a control loop."""

Observed = headers.ObservationRequest[Any]


class PolicyServer:
    """Serves models on one endpoint. A context manager; `run` returns after `stop` and the last reply."""

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
        max_buffered: int = MAX_BUFFERED,
    ):
        """`listener` is the descriptor of a listening socket at `bind` that several processes share.

        `max_buffered` is how much memory messages may take, in MiB.
        """
        address = check_bind(bind, insecure, keys is not None)
        self.metrics = Metrics()
        self.requests, self.errors, self.ready = 0, 0, False
        self.worker: int | None = None
        """Number of this process among several behind one endpoint; None if it is the only one."""
        self.on_swap: Callable[[str, Contract], None] | None = None
        """Called with name and contract after a model was swapped in."""
        self._registry = ModelRegistry(models)
        self._keys, self._recorder, self._busy_poll = keys, recorder, busy_poll
        self._quota = Quota(max_rate)
        self._stopping = False
        self._scheduled_swaps: deque[tuple[str, Model]] = deque()
        self._next_housekeeping = 0.0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._jpeg = JpegDecoder(self.context, INTERNAL)
        self._socket = self.context.socket(zmq.ROUTER)
        served = [slot.model for slot in self._registry.by_name.values()]
        large = max(map(requests.observation_bytes, served)) >= protocol.ZERO_COPY_BYTES
        # ZeroMQ ends the connection of a client that sends more, before it allocates memory for it.
        self._max_bytes = requests.largest_message(served)
        configure(self._socket, self._max_bytes)
        self._inbox = Inbox(self._socket, keys=keys is not None, large=large)
        if keys is not None:
            keys.protect(self.context, self._socket)
        try:
            self._socket.bind(INTERNAL)
            self._connections = Connections(self._socket, max_buffered=max_buffered)
            bind_socket(self._socket, bind, address, listener)
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise cannot_listen(bind, error) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the port; replies that ZeroMQ has accepted are still sent."""
        self._jpeg.close()
        if getattr(self, "_connections", None) is not None:
            self._connections.close()
        self._socket.close(linger=500)
        if self._keys is not None:
            self._keys.close()
        self.context.term()

    def stop(self) -> None:
        """Have `run` answer running requests and return; safe to call from a signal handler."""
        self._stopping = True

    def schedule_swap(self, name: str, model: Model) -> None:
        """Replace the model of that name, between two refinement steps; safe from any thread."""
        self._scheduled_swaps.append((name, model))

    def run(self) -> None:
        """Answer requests until stopped, then finish those that are running."""
        # Observations with NaN are rejected with an error; numpy's warnings would fill the log.
        with np.errstate(invalid="ignore", over="ignore"):
            self._run()

    def _run(self) -> None:
        # Existing objects stay: keep the garbage collector from walking through them between two requests.
        gc.collect()
        gc.freeze()
        self._connections.rebase()
        self.ready = True
        while not self._stopping:
            self._poll_once()
        now = time.monotonic()
        notice, expiry = now + DRAIN_NOTICE, now + DRAIN_LIMIT
        # Requests from here on are rejected with `draining`, so clients learn of it before the socket closes.
        while now < expiry and (
            now < notice
            or self._quota.in_flight
            or self._inbox
            or protocol.ready(self._socket, protocol.READABLE)
        ):
            self._poll_once()
            now = time.monotonic()

    def _poll_once(self) -> None:
        engine = self._registry.next_busy()
        self._receive(busy=engine is not None)
        while self._jpeg.ready:
            job, slot, refusal = self._jpeg.ready.popleft()
            if refusal is None:
                slot.engine.submit(job)
            else:
                self._quota.end(job.client)
                self._refuse(job.reply_context.client, job.reply_context.echo, refusal)
        engine = engine or self._registry.next_busy()
        if engine is not None:
            rows = engine.rows
            events = engine.step()
            if engine.rows > rows:
                self.metrics.batch_rows.add(engine.rows - rows)
            for event in events:
                self._emit(event)
        now = time.monotonic()
        if now >= self._next_housekeeping:
            self._housekeep(now)

    def _housekeep(self, now: float) -> None:
        self._next_housekeeping = now + HOUSEKEEPING
        self.metrics.connected = self._connections.count()
        for client, requests_dropped in self._registry.drop_gone(is_gone):
            for _ in range(requests_dropped):
                self._quota.end(client)
                self._count_error("gone")
        if self._recorder is not None:
            self.metrics.recorder_dropped = self._recorder.dropped
        while self._scheduled_swaps:
            name, model = self._scheduled_swaps.popleft()
            self._registry.by_name[name].swap(model)
            self.metrics.swaps += 1
            if self.on_swap is not None:
                self.on_swap(name, model.contract)

    def _receive(self, *, busy: bool) -> None:
        """Read all messages that have arrived, and take in as many as there is time for."""
        only = self._inbox.read(wait=not (busy or self._inbox or self._busy_poll))
        if only is not None:
            self._take_in(*only)
            return
        for message in self._inbox.take(busy=busy):
            self._take_in(*message)

    def _take_in(self, client: Client, frame: Any, whole: bool, received: float) -> None:
        """Handle a message unless the sender's key was revoked."""
        if self._keys is None or not (key := key_of(client)) or self._keys.allows(key):
            self._handle(client, frame, whole, received)

    def _handle(self, client: Client, frame: Any, whole: bool, received: float) -> None:
        self.requests += 1
        echo = NO_ECHO
        operation, refusal = "malformed", None
        try:
            reason = self._quota.rejection(client, received)
            head = protocol.decode(frame)
            echo = Echo(head.id, head.epoch)
            if reason is not None:
                raise ProtocolError("busy", reason)
            if not whole:
                raise ProtocolError("bad_message", "a message is one frame, and this one had several")
            request = protocol.decode_request(head)
            operation = request.operation
            if isinstance(request, headers.ObservationRequest):
                self._compute(client, echo, request, head, received)
            else:
                protocol.request_arrays(head, request)
                self._answer(client, echo, request)
        except protocol.OlderProtocol as error:
            self._count_error(error.code)
            self._send(client.connection, protocol.refusal_in_version_1(frame, str(error)))
        except ProtocolError as error:
            refusal = headers.Refusal(code=error.code, error=str(error))
        except ContractError as error:
            refusal = headers.Refusal(code="bad_observation", error=str(error))
        if refusal is not None:
            self._refuse(client.connection, echo, refusal)
        self.metrics.count_request(operation)

    def _compute(self, client: Client, echo: Echo, request: Observed, head: Head, received: float) -> None:
        """Hand a request with observations to the engine of its model, or to the recorder."""
        if self._stopping:
            raise ProtocolError("draining", "this server is about to stop")
        if self._recorder is None and isinstance(request, headers.Episode):
            raise ProtocolError("bad_request", "this server does not record: start it with --record DIR")
        slot, layout, contract_update = self._registry.find_for_contract(request.bundle, request.contract)
        if isinstance(request, headers.Act | headers.ActMany) and self._inbox.drops(request.budget, received):
            self.metrics.deadline_misses += 1
            return
        fields, named = protocol.request_arrays(head, request, layout)
        model = slot.engine.model
        context = ReplyContext(client.connection, echo, contract_update, model)
        match request:
            case headers.Act() | headers.ActMany():
                jobs = requests.read_jobs(request, fields, named, model, context, client, received)
                self._admit(client, sum([job.rows for job in jobs]), received, len(jobs))
                for job in jobs:
                    job.history = None if self._recorder is None else History()
                    jpeg = isinstance(request, headers.Act) and request.jpeg
                    self._jpeg.submit(job, slot, named) if jpeg else slot.engine.submit(job)
            case headers.Refine() | headers.Value():
                rows, work = requests.read_task(request, fields, named, model, Task(context, client))
                self._admit(client, rows, received)
                slot.engine.submit_slices(client, work)
            case headers.Episode():
                assert self._recorder is not None
                part = requests.read_episode(request, head.epoch, fields, named, model)
                recorded = self._recorder.record_episode(part, model.contract)
                reply = headers.EpisodeReply(recorded=recorded, contract_id=contract_update)
                self._reply(client.connection, echo, reply, {})

    def _admit(self, client: Client, rows: int, received: float, count: int = 1) -> None:
        """Count so many decisions as under way, or raise ProtocolError. The message took one row already."""
        reason = self._quota.crowding(client, count)
        if reason is None and rows > 1:
            reason = self._quota.rejection(client, received, rows - 1)
        if reason is not None:
            raise ProtocolError("busy", reason)
        self._quota.begin(client, count)

    def _answer(self, client: Client, echo: Echo, request: headers.Request[Any]) -> None:
        """Reply to a request without observations."""
        state = ServerState(
            ready=self.ready and not self._stopping,
            requests=self.requests,
            errors=self.errors,
            in_flight=self._quota.in_flight,
            clients=self._quota.clients,
            worker=self.worker,
            records=self._recorder is not None,
            max_bytes=self._max_bytes,
        )
        reply, arrays = answer(request, self._registry, self.metrics, state)
        self._reply(client.connection, echo, reply, arrays)

    def _emit(self, event: Event) -> None:
        context: ReplyContext = event.job.reply_context
        reply: headers.Reply
        if isinstance(event, Done):
            server = time.monotonic() - event.job.received
            self._quota.end(event.job.client)
            self._finish(event, context, server)
            self.metrics.count_decision(event, server)
            if self._recorder is not None:
                self._recorder.record(event, context.model.contract, server)
        elif isinstance(event, Preview):
            reply = headers.ActReply(
                k=event.k, last=False, value=event.value, spread=event.spread, seed=event.job.seed
            )
            self._reply(context.client, context.echo, reply, Packed((event.actions,)))
        elif isinstance(event, Computed):
            self._quota.end(event.job.client)
            self._reply(context.client, context.echo, computed(event, context), event.arrays)
        else:
            self._quota.end(event.job.client)
            self.metrics.deadline_misses += 1
            self._finish(event, context, event.waited)

    def _finish(self, event: Done | Expired, context: ReplyContext, server: float) -> None:
        """Answer a request that has come to its end; a batch has with its last decision."""
        if (found := outcome(event, context, server, self._quota.in_flight)) is not None:
            if isinstance(found[0], headers.Refusal):
                self._count_error(found[0].code)
            self._reply(context.client, context.echo, *found)

    def _refuse(self, client: bytes, echo: Echo, refusal: headers.Refusal) -> None:
        self._count_error(refusal.code)
        self._reply(client, echo, refusal, {})

    def _count_error(self, code: str) -> None:
        self.errors += 1
        self.metrics.count_error(code)

    def _reply(self, client: bytes, echo: Echo, reply: headers.Reply, arrays: Payload) -> None:
        self._send(client, protocol.encode(reply, arrays, id=echo.id, epoch=echo.epoch))

    def _send(self, client: bytes, frame: bytes) -> None:
        try:  # `contextlib.suppress` would take longer than one of the two calls into ZeroMQ
            protocol.send(self._socket, frame, protocol.NOBLOCK, client=client)
        except zmq.ZMQError:
            return  # Client gone or not reading: drop the reply.
