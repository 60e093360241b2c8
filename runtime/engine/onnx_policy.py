"""A bundle as a `Policy` in this process: the engine without a server, for evaluation and comparison."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.observation import ObservationReader
from rql_deploy.policy import ActOptions, Decision, ResolvedOptions
from rql_deploy.runtime.wire.checks import all_finite
from rql_deploy.seeding import draw_seed, flow_noise

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

    def __init__(self, bundle: Bundle):
        self._model = Model(bundle)
        self._idle: list[Engine] = []
        """Engines of calls that came to their end."""
        self._read = ObservationReader(bundle.contract.plant.inputs)
        # Re-entrant: a signal handler may ask for a decision, too.
        self._lock = threading.RLock()

    @property
    def contract(self) -> Contract:
        return self._model.contract

    def warm_up(self) -> None:
        """Run every graph once, so that the first request allocates nothing."""
        with self._lock:
            self._model.warm_up()

    def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `rql_deploy.policy.Policy.act`; a local policy computes to the end whatever the deadline.

        With `prefix`, one candidate is made and V is not computed.
        """
        start = time.monotonic()
        asked = ResolvedOptions.of(options)
        if asked.prefix is not None and len(prefix := self._check_prefix(asked.prefix)):
            return self._continue(self._job(observation, start, replace(asked, prune=())), prefix, start)
        done = None
        for event in self._run(self._job(observation, start, asked)):
            done = event
        assert isinstance(done, Done)
        return self._decision(done, start)

    def stream(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns."""
        start = time.monotonic()
        job = self._job(observation, start, ResolvedOptions.of(options, without=("prefix",)))
        job.stream = True
        for event in self._run(job):
            if isinstance(event, Preview):
                timing = {"inference": time.monotonic() - start}
                yield self._new(event.actions, event.value, event.spread, event.k, start, job.seed, timing)
            else:
                yield self._decision(event, start)

    def _continue(self, job: Job, prefix: NDArray[np.float32], start: float) -> Decision:
        """A chunk whose first actions are fixed to `prefix`.

        Inpainting of action chunks (Black et al. 2025, arXiv:2506.07339, without their guidance): before
        every refinement step the fixed actions a are set to x(f) = (1 - f) noise + f a.
        """
        model = self._model
        noise = flow_noise(job.seed, 1, model.chunk_dim)
        given = np.zeros((1, model.contract.h, prefix.shape[1]), np.float32)
        given[0, : len(prefix)] = prefix
        size = prefix.size
        target = model.scaled(given)[:, :size]
        with self._lock:
            features = model.encode(job.fields)
        x, actions = noise.copy(), given
        for f, delta in model.schedule:
            x = np.array(x)
            x[:, :size] = (1.0 - f) * noise[:, :size] + f * target
            with self._lock:
                x, actions = model.refine(
                    features, x, np.full((1, 1), f, np.float32), np.full((1, 1), delta, np.float32)
                )
        deltas = tuple(delta for _, delta in model.schedule)
        timing = {"inference": time.monotonic() - start}
        return self._new(actions[0], None, None, len(deltas), start, job.seed, timing, deltas=deltas)

    def _check_prefix(self, prefix: Any) -> NDArray[np.float32]:
        h, width = self.contract.h, self.contract.plant.action_dim
        try:
            actions = np.asarray(prefix, np.float32)
        except (TypeError, ValueError) as error:
            raise TypeError(f"prefix is not an array of actions: {error}") from None
        if actions.size == 0:
            return actions.reshape(0, width)
        if actions.ndim != 2 or len(actions) > h or actions.shape[1] != width:
            raise ContractError(
                f"prefix has shape {list(actions.shape)}: pass at most {h} actions of {width} dimensions"
            )
        if not all_finite(actions):
            raise ContractError("prefix holds NaN or infinity")
        return actions

    def _job(self, observation: Mapping[str, Any], start: float, asked: ResolvedOptions) -> Job:
        asked.check_prune(self.contract.F)
        fields = self._model.rows(self._read(observation))
        seed = draw_seed() if asked.seed is None else asked.seed
        prune = tuple(asked.prune)
        return Job(None, fields, seed, start, candidates=asked.candidates, value=asked.value, prune=prune)

    def _run(self, job: Job) -> Iterator[Preview | Done]:
        with self._lock:
            engine = self._idle.pop() if self._idle else Engine(self._model)
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
        """A decision with a copy of the actions, which are rows of the engine's arrays."""
        more |= {"bundle": self._model.name, "contract_id": self._model.contract.contract_id}
        return Decision(actions.copy(), *known, **more)
