"""A bundle as a `Policy` in this process: the engine without a server, for evaluation and comparison."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.batches import BatchOptions, count_rows, resolve_batch
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.observation import ObservationReader
from rql_deploy.policy import ActOptions, Decision, ResolvedOptions
from rql_deploy.prefix import read_prefix
from rql_deploy.runtime.wire.checks import all_finite
from rql_deploy.seeding import draw_seed

from .engine import Engine
from .model import Model
from .request import Done, Job, Preview

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OnnxPolicy:
    """Runs a bundle's graphs; decisions have the same bytes as those of a server.

    Threads may share it: they take turns between refinement steps. Each call has an engine to itself, and one
    that is broken off, by an exception or by its caller, takes it along.
    """

    continues = True
    """Whether it takes `prefix`."""

    def __init__(self, bundle: Bundle):
        self._model = Model(bundle)
        self._idle: list[Engine] = []
        """Engines of calls that came to their end."""
        self._read = ObservationReader(bundle.contract.plant.inputs)
        self._locks: dict[int, AbstractContextManager[Any]] = {}
        """By process."""

    @property
    def _lock(self) -> AbstractContextManager[Any]:
        """Re-entrant, as a signal handler may ask for a decision, too.

        A fork has one of its own: a thread of its parent may hold that one for ever.
        """
        process = os.getpid()
        return self._locks.get(process) or self._locks.setdefault(process, threading.RLock())

    @property
    def contract(self) -> Contract:
        return self._model.contract

    def warm_up(self) -> None:
        """Run every graph once, so that the first request allocates nothing."""
        with self._lock:
            self._model.warm_up()

    def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `rql_deploy.policy.Policy.act`; a local policy computes to the end whatever the deadline."""
        start = time.monotonic()
        done = None
        for event in self._run(self._job(observation, start, ResolvedOptions.of(options))):
            done = event
        assert isinstance(done, Done)
        return self._decision(done, start)

    def act_many(self, observations: Mapping[str, Any], **options: Unpack[BatchOptions]) -> list[Decision]:
        """See `RemotePolicy.act_many`; a local policy computes to the end whatever the deadline."""
        start = time.monotonic()
        rows = count_rows(observations, self._read.names)
        asked, seeds = resolve_batch(options, rows)
        fields = self._read(observations, rows)
        jobs = []
        for row in range(rows):
            one = asked.of_row(row, None if seeds is None else seeds[row])
            jobs.append(self._job({name: values[row] for name, values in fields.items()}, start, one, row))
        made = {event.job.reply_context: event for event in self._run(*jobs)}
        return [self._decision(made[row], start) for row in range(rows)]  # type: ignore[arg-type]

    def stream(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns."""
        start = time.monotonic()
        job = self._job(observation, start, ResolvedOptions.of(options))
        job.stream = True
        for event in self._run(job):
            if isinstance(event, Preview):
                timing = {"inference": time.monotonic() - start}
                yield self._new(event.actions, event.value, event.spread, event.k, start, job.seed, timing)
            else:
                yield self._decision(event, start)

    def _job(self, observation: Mapping[str, Any], start: float, asked: ResolvedOptions, row: int = 0) -> Job:
        asked.check_prune(self.contract.F)
        fields = self._model.rows(self._read(observation))
        seed = draw_seed() if asked.seed is None else asked.seed
        return Job(
            row,
            fields,
            seed,
            start,
            candidates=asked.candidates,
            value=asked.value,
            pessimism=asked.pessimism,
            prune=tuple(asked.prune),
            continuation=self._model.continuation(read_prefix(asked, self.contract)),
        )

    def _run(self, *jobs: Job) -> Iterator[Preview | Done]:
        with self._lock:
            engine = self._idle.pop() if self._idle else Engine(self._model)
        for job in jobs:
            engine.submit(job)
        while engine.busy:
            with self._lock:
                events = engine.step()
            for event in events:
                assert isinstance(event, Preview | Done)  # Nothing expires without a deadline.
                yield event
        # Only from here on: after an exception, or when the caller leaves, nothing is known of its state.
        self._idle.append(engine)

    def reset(self) -> None:
        """Does nothing: this policy keeps no state between decisions."""

    def _decision(self, done: Done, start: float) -> Decision:
        return self._new(
            done.actions,
            done.value,
            done.spread,
            len(done.deltas),
            start,
            done.job.seed,
            {"inference": time.monotonic() - start},
            candidates_scored=done.candidates_scored,
            deltas=done.deltas,
        )

    def _new(self, actions: NDArray[np.float32], *known: Any, **more: Any) -> Decision:
        """A decision with a copy of the actions, which are rows of the engine's arrays.

        Raises ContractError where they are not finite.
        """
        if not all_finite(actions):
            raise ContractError(
                "the policy makes no finite chunk of this observation",
                hint="a field is far beyond what it was trained on: check its unit",
            )
        more |= {"bundle": self._model.name, "contract_id": self._model.contract.contract_id}
        return Decision(actions.copy(), *known, **more)
