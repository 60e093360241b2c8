"""Computing a robot's next request beforehand, for nobody, so that it finds the processor warm.

Between two requests of a robot the server sleeps for most of a control period. Meanwhile the networks'
weights and its own code leave the caches, and a decision takes twice as long as one that follows another
(benchmarks/RESULTS.md). So where robots ask in a steady rhythm, and nobody else keeps the processor warm, the
server computes the last request once more just before the next one is expected. Nobody gets the result, and
no measured duration comes of it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import zmq
from msgspec import Struct
from zmq.backend import zmq_poll

from rql_deploy.errors import ContractError
from rql_deploy.runtime.engine.budget import UNROLLED_ROWS
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import NOBODY, Job
from rql_deploy.runtime.engine.unrolled import run_unrolled
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.checks import ProtocolError
from rql_deploy.seeding import FlowNoise

from .registry import ModelRegistry
from .requests import read_job

MOST = 8
"""Robots whose rhythm is followed: more keep the processor warm."""
SHORTEST, LONGEST = 8e-3, 1.0
"""Seconds between two requests that a rehearsal may pay for."""
ALIKE = 0.25
"""The last three gaps between requests are a rhythm if they differ by at most this share."""
SHARE = 0.1
"""Most of a gap that a rehearsal may take: larger networks gain little, and cost a core."""
MARGIN = 0.5e-3
"""Seconds between the end of a rehearsal and the request."""
COLD = 5e-3
"""Seconds without a request after which a rehearsal pays."""
FORGETTING = 0.99
"""What a request leaves of a measured cost: one slow rehearsal must not be the last."""
MAX_BYTES = 4 << 20
"""Of a request that is kept."""
SILENT = 2 * LONGEST
"""Seconds after which a robot's place is another's."""


class Robot(Struct, eq=False):
    """A connection that asks again and again."""

    frame: Any
    """Its latest request."""
    latest: float
    """When that was received, on the monotonic clock."""
    gaps: tuple[float, ...] = ()
    """Seconds between its latest requests, three at most."""
    cost: float = 0.0
    """Seconds of a rehearsal: of the dearest, which is forgotten slowly."""
    due: float = math.inf
    """When to rehearse next."""


class Rehearsals:
    """Follows the rhythm of robots. Belongs to the thread that owns the socket."""

    def __init__(self, socket: zmq.Socket[bytes], registry: ModelRegistry, most: int = MOST):
        """At `most` so many robots are followed; 0 never rehearses."""
        self._socket, self._registry, self._most = socket, registry, most
        self._noise = FlowNoise()
        self._robots: dict[bytes, Robot] = {}
        self._latest = -math.inf
        """When anybody's request was received."""
        self.due = math.inf
        """When to rehearse next."""
        self.count = 0

    def note(self, connection: bytes, request: headers.Act, frame: Any, received: float) -> None:
        """A request was received."""
        self._latest = received
        if request.jpeg or (request.candidates or 1) > UNROLLED_ROWS or len(frame) > MAX_BYTES:
            self._robots.pop(connection, None)
            self._plan()
            return
        robot = self._robots.get(connection)
        if robot is None:
            if len(self._robots) >= self._most:
                self._forget(received - SILENT)
            if len(self._robots) < self._most:
                self._robots[connection] = Robot(frame, received)
            return
        gap = received - robot.latest
        robot.frame, robot.latest = frame, received
        robot.cost *= FORGETTING
        robot.gaps = gaps = (*robot.gaps[-2:], gap)
        robot.due = math.inf
        if SHORTEST <= gap <= LONGEST and len(gaps) == 3:
            least = min(gaps)
            if max(gaps) - least <= ALIKE * least and robot.cost <= SHARE * least:
                robot.due = received + least - robot.cost - MARGIN
        self._plan()

    def wait(self) -> None:
        """Return when a request has come, or a rehearsal was due and is done."""
        left = self.due - time.monotonic()
        if left > 0 and zmq_poll([(self._socket, protocol.READABLE)], int(left * 1e3)):
            return
        connection, robot = min(self._robots.items(), key=lambda item: item[1].due)
        robot.due = math.inf
        began = time.monotonic()
        if began - self._latest >= COLD:
            try:
                self._rehearse(robot.frame, began)
            except (ProtocolError, ContractError):  # the bundle was exchanged for one that it does not fit
                del self._robots[connection]
            robot.cost = max(time.monotonic() - began, robot.cost)
            self.count += 1
        self._plan()

    def _rehearse(self, frame: Any, now: float) -> None:
        """Compute a request, of a stepwise one the first step."""
        head = protocol.decode(frame)
        request = protocol.decode_request(head)
        assert isinstance(request, headers.Act)
        slot, layout, _ = self._registry.find_for_contract(request.bundle, request.contract)
        fields, named = protocol.request_arrays(head, request, layout)
        model = slot.engine.model
        job = read_job(request, fields, named, model, None, NOBODY, now)
        model.costs.paused = True
        try:
            if job.stepwise:
                _first_step(model, job, self._noise)
            else:
                deltas = tuple(delta for _, delta in model.schedule)
                run_unrolled(model, [job], deltas, self._noise, now, time.monotonic)
        finally:
            model.costs.paused = False

    def _plan(self) -> None:
        self.due = min([robot.due for robot in self._robots.values()], default=math.inf)

    def _forget(self, silent_since: float) -> None:
        self._robots = {key: robot for key, robot in self._robots.items() if robot.latest > silent_since}


def _first_step(model: Model, job: Job, noise: FlowNoise) -> None:
    x = noise(job.seed, job.candidates, model.chunk_dim)
    features = np.repeat(model.encode(job.fields), len(x), axis=0)
    f = np.zeros((len(x), 1), np.float32)
    model.refine(features, x, f, f + np.float32(model.schedule[0][1]))
    if job.scored:
        model.value(features, x, f)
