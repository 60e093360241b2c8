"""The policy server: a ZeroMQ ROUTER socket in front of the engine, without torch.

One thread receives, computes and replies. Between two refinement steps it receives what has arrived, so a
request joins the batch at the next step. A malformed request gets an error code and does not affect other
clients. Metrics, logs, recording, loading of new bundles and WebSocket clients run in other threads; they use
queues, or are clients of `INTERNAL`.
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
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.arrays import Arrays, Packed
from rql_deploy.runtime.wire.checks import ProtocolError
from rql_deploy.runtime.wire.protocol import Head, Payload

from . import requests
from .auth import ServerKeys
from .listen import Connections, check_bind, configure
from .metrics import Metrics
from .quota import MAX_RATE, Quota
from .recording import Recorder
from .registry import ModelRegistry, ModelSlot
from .replies import Echo, ReplyContext, decision, hello, statistics

INTERNAL = "inproc://policy"
"""Endpoint for threads of the server's process, in the server's ZeroMQ context."""
MAX_WAITING = 1024
"""Most requests received and not answered, of all clients; more wait in ZeroMQ's bounded queues."""
MAX_RECEIVED_PER_STEP = 64
HOUSEKEEPING = 0.25
"""Seconds between checks of connections, revoked keys and models that are ready to be swapped in."""
DRAIN_LIMIT = 10.0
"""Seconds for running requests to finish when the server stops."""
DRAIN_NOTICE = 0.3
"""Seconds in which a stopping server still replies `draining`: several periods of a control loop."""


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
    ):
        """`listener` is the descriptor of a listening socket at `bind` that several processes share."""
        check_bind(bind, insecure, keys is not None)
        self.metrics = Metrics()
        self.requests = self.errors = 0
        self.ready = False
        self.worker: int | None = None
        """Number of this process among several behind one endpoint; None if it is the only one."""
        self.on_swap: Callable[[str, Contract], None] | None = None
        """Called with name and contract after a model was swapped in."""
        self._registry = ModelRegistry(models)
        self._keys, self._recorder, self._busy_poll = keys, recorder, busy_poll
        self._quota = Quota(max_rate)
        self._stopping = False
        self._in_flight = 0
        self._scheduled_swaps: deque[tuple[str, Model]] = deque()
        self._next_housekeeping = 0.0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self.context.socket(zmq.ROUTER)
        served = [slot.model for slot in self._registry.by_name.values()]
        self._large = max(map(requests.observation_bytes, served)) >= protocol.ZERO_COPY_BYTES
        # ZeroMQ ends the connection of a client that sends more, before it allocates memory for it.
        configure(self._socket, requests.largest_message(served))
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
                f"cannot listen on {bind} ({error.strerror})",
                hint="is another server using it? Pass --bind with another port",
            ) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the port; replies that ZeroMQ has accepted are still sent."""
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
        self.ready = True
        while not self._stopping:
            self._poll_once()
        now = time.monotonic()
        notice, expiry = now + DRAIN_NOTICE, now + DRAIN_LIMIT
        # Requests from here on are rejected with `draining`, so clients learn of it before the socket closes.
        while now < expiry and (now < notice or self._in_flight or protocol.ready(self._socket, zmq.POLLIN)):
            self._poll_once()
            now = time.monotonic()

    def _poll_once(self) -> None:
        engine = self._registry.next_busy()
        self._receive(wait=engine is None and not self._busy_poll)
        engine = engine or self._registry.next_busy()
        now = time.monotonic()
        if engine is not None:
            rows = engine.rows
            events = engine.step()
            if engine.rows > rows:
                self.metrics.batch_rows.add(engine.rows - rows)
            for event in events:
                self._emit(event)
        if now >= self._next_housekeeping:
            self._housekeep(now)

    def _housekeep(self, now: float) -> None:
        self._next_housekeeping = now + HOUSEKEEPING
        self.metrics.connected = self._connections.count()
        if self._recorder is not None:
            self.metrics.recorder_dropped = self._recorder.dropped
        if self._keys is not None:
            self._keys.refresh()
        while self._scheduled_swaps:
            name, model = self._scheduled_swaps.popleft()
            self._registry.by_name[name].swap(model)
            self.metrics.swaps += 1
            if self.on_swap is not None:
                self.on_swap(name, model.contract)

    # Receiving.

    def _receive(self, wait: bool) -> None:
        """Receive all messages that have arrived, so that their budgets start to run; `wait` for one if idle.

        Reading until it fails takes fewer system calls than asking the socket whether it can be read.
        """
        flags = 0 if wait else protocol.NOBLOCK
        for _ in range(MAX_RECEIVED_PER_STEP):
            if self._in_flight >= MAX_WAITING:
                return
            try:
                client, frame, whole = self._next_message(flags)
            except zmq.Again:
                return
            flags = protocol.NOBLOCK
            if frame is not None:
                self._handle(client, frame, whole, time.monotonic())

    def _next_message(self, flags: int) -> tuple[bytes, Any, bool]:
        """Client, frame, and whether it was one frame; frame is None when the client's key was revoked."""
        if self._keys is None:
            return protocol.receive_from(self._socket, flags, large=self._large)
        client: bytes = self._socket.recv(flags)
        frame = self._socket.recv(protocol.NOBLOCK, copy=False)
        whole = not protocol.drop_rest(self._socket)
        return client, protocol.contents(frame) if self._keys.allows(frame) else None, whole

    def _handle(self, client: bytes, frame: Any, whole: bool, received: float) -> None:
        self.requests += 1
        echo = Echo()
        operation = "malformed"
        try:
            reason = self._quota.rejection(client, received)
            head = protocol.decode(frame)
            echo = Echo(head.id, head.epoch)
            if reason is not None:
                raise ProtocolError("busy", reason)
            if not whole:
                raise ProtocolError("bad_message", "a message is one frame, and this one had several")
            request = protocol.decode_request(head)
            operation = request.operation()
            self._dispatch(client, echo, request, head, received)
        except protocol.OlderProtocol as error:
            self._count_error(error.code)
            self._send(client, protocol.refusal_in_version_1(frame, str(error)))
        except ProtocolError as error:
            self._reply_error(client, echo, error.code, str(error))
        except ContractError as error:
            self._reply_error(client, echo, "bad_observation", str(error))
        self.metrics.count_request(operation)

    def _dispatch(
        self, client: bytes, echo: Echo, request: headers.Request[Any], head: Head, received: float
    ) -> None:
        reply: headers.Reply
        arrays: Payload = {}
        if not isinstance(request, headers.ObservationRequest):
            protocol.request_arrays(head, request)
        match request:
            case headers.Act():
                self._queue(client, echo, request, head, received)
                return
            case headers.Refine():
                slot, contract_update, fields, named = self._open(request, head)
                reply = headers.RefineReply(contract_id=contract_update)
                arrays = requests.refine(request, fields, named, slot.model)
            case headers.Value():
                slot, contract_update, fields, named = self._open(request, head)
                reply = headers.ValueReply(contract_id=contract_update)
                arrays = requests.value(request, fields, named, slot.model)
            case headers.Hello():
                reply, arrays = hello(self._registry, request.bundle, records=self._recorder is not None)
            case headers.Reset():
                reply = headers.ResetReply()
            case headers.Episode():
                reply = self._record_episode(request, head)
            case headers.Stats():
                reply = statistics(
                    self._registry,
                    self.metrics,
                    ready=self.ready and not self._stopping,
                    in_flight=self._in_flight,
                    clients=self._quota.clients,
                    worker=self.worker,
                )
            case _:
                ready = self.ready and not self._stopping
                reply = headers.PingReply(requests=self.requests, errors=self.errors, ready=ready)
        self._reply(client, echo, reply, arrays)

    def _open(
        self, request: headers.ObservationRequest[Any], head: Head
    ) -> tuple[ModelSlot, str | None, Arrays, Arrays]:
        """The slot that a request names, its new contract's id if that changed, fields and named arrays."""
        if self._stopping:
            raise ProtocolError("draining", "this server is about to stop")
        slot, layout, contract_update = self._registry.find_for_contract(request.bundle, request.contract)
        return slot, contract_update, *protocol.request_arrays(head, request, layout)

    def _queue(self, client: bytes, echo: Echo, request: headers.Act, head: Head, received: float) -> None:
        slot, contract_update, fields, _ = self._open(request, head)
        context = ReplyContext(client, echo, contract_update, slot.model)
        slot.engine.submit(requests.read_job(request, fields, slot.model, context, received))
        self._quota.begin(client)
        self._in_flight += 1

    def _record_episode(self, request: headers.Episode, head: Head) -> headers.EpisodeReply:
        if self._recorder is None:
            raise ProtocolError("bad_request", "this server does not record: start it with --record DIR")
        slot, contract_update, fields, named = self._open(request, head)
        part = requests.read_episode(request, head.epoch, fields, named, slot.model)
        recorded = self._recorder.record_episode(part, slot.model.contract)
        return headers.EpisodeReply(recorded=recorded, contract_id=contract_update)

    # Replying.

    def _emit(self, event: Event) -> None:
        context: ReplyContext = event.job.reply_context
        if isinstance(event, Preview):
            preview = headers.ActReply(k=event.k, last=False, value=event.value, spread=event.spread)
            self._reply(context.client, context.echo, preview, Packed((event.actions,)))
            return
        self._quota.end(context.client)
        self._in_flight -= 1
        if isinstance(event, Expired):
            self.metrics.deadline_misses += 1
            self._reply_error(
                context.client, context.echo, "expired", "the request's budget was spent before its turn came"
            )
            return
        self._reply_decision(event, context)

    def _reply_decision(self, done: Done, context: ReplyContext) -> None:
        job = done.job
        server = time.monotonic() - job.received
        self._reply(context.client, context.echo, decision(done, context, server), Packed((done.actions,)))
        metrics = self.metrics
        metrics.steps_per_reply.add(len(done.deltas))
        metrics.stages["queue"].add(done.queue)
        metrics.stages["inference"].add(done.inference)
        metrics.stages["server"].add(server)
        metrics.steps_reduced += job.steps_reduced
        metrics.deadline_misses += job.due is not None and job.received + server > job.due
        if self._recorder is not None:
            self._recorder.record(done, context.model.contract, server)

    def _reply_error(self, client: bytes, echo: Echo, code: str, reason: str) -> None:
        self._count_error(code)
        self._reply(client, echo, headers.Refusal(code=code, error=reason), {})

    def _count_error(self, code: str) -> None:
        self.errors += 1
        self.metrics.count_error(code)

    def _reply(self, client: bytes, echo: Echo, reply: headers.Reply, arrays: Payload) -> None:
        self._send(client, protocol.encode(reply, arrays, id=echo.id, epoch=echo.epoch))

    def _send(self, client: bytes, frame: bytes) -> None:
        with contextlib.suppress(zmq.ZMQError):  # Client gone or not reading: drop the reply.
            protocol.send(self._socket, frame, protocol.NOBLOCK, client=client)
