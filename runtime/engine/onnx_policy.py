"""A bundle as a `Policy` in this process: the engine without a server, for evaluation and comparison."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.policy import MAX_CANDIDATES, ActOptions, Decision, ResolvedOptions
from rql_deploy.seeding import draw_seed, flow_noise

from .engine import Engine
from .model import Model
from .request import Done, Job, Preview

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OnnxPolicy:
    """Runs one request at a time in its own engine; decisions have the same bytes as those of a server."""

    def __init__(self, bundle: Bundle):
        self._model = Model(bundle)
        self._engine = Engine(self._model)
        self._fields = [field.name for field in bundle.contract.plant.fields]

    @property
    def contract(self) -> Contract:
        return self._model.contract

    def warm_up(self) -> None:
        """Run every graph once, so that the first request allocates nothing."""
        self._model.warm_up()

    def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `rql_deploy.policy.Policy.act`; a local policy computes to the end whatever the deadline.

        With `prefix`, one candidate is made and V is not computed.
        """
        start = time.monotonic()
        asked = ResolvedOptions.of(options)
        if asked.prefix is not None and len(asked.prefix):
            return self._continue(
                self._job(observation, start, replace(asked, prune=())), asked.prefix, start
            )
        done = None
        for event in self._run(self._job(observation, start, asked)):
            done = event
        assert isinstance(done, Done)
        return _decision(done, start)

    def stream(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns."""
        start = time.monotonic()
        job = self._job(observation, start, ResolvedOptions.of(options, without=("prefix",)))
        job.stream = True
        for event in self._run(job):
            if isinstance(event, Preview):
                timing = {"inference": time.monotonic() - start}
                yield Decision(event.actions, event.value, event.spread, event.k, start, job.seed, timing)
            else:
                yield _decision(event, start)

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
        features, x, actions = model.encode(job.fields), noise.copy(), given
        for f, delta in model.schedule:
            x = np.array(x)
            x[:, :size] = (1.0 - f) * noise[:, :size] + f * target
            x, actions = model.refine(
                features, x, np.full((1, 1), f, np.float32), np.full((1, 1), delta, np.float32)
            )
        deltas = tuple(delta for _, delta in model.schedule)
        timing = {"inference": time.monotonic() - start}
        return Decision(actions[0], None, None, len(deltas), start, job.seed, timing, deltas=deltas)

    def _job(self, observation: Mapping[str, Any], start: float, asked: ResolvedOptions) -> Job:
        if not 1 <= asked.candidates <= MAX_CANDIDATES:
            raise ContractError(f"candidates is {asked.candidates}: pass 1 to {MAX_CANDIDATES}")
        fields = self._model.rows(
            {name: np.asarray(observation[name]) for name in self._fields if name in observation}
        )
        seed = draw_seed() if asked.seed is None else asked.seed
        prune = tuple((int(k), int(keep)) for k, keep in asked.prune)
        return Job(None, fields, seed, start, candidates=asked.candidates, value=asked.value, prune=prune)

    def _run(self, job: Job) -> Iterator[Preview | Done]:
        self._engine.submit(job)
        try:
            while self._engine.busy:
                for event in self._engine.step():
                    assert isinstance(event, Preview | Done)  # Nothing expires without a deadline.
                    yield event
        finally:
            # A caller may stop reading previews early: finish the job, so that the next request finds an
            # empty batch.
            while self._engine.busy:
                self._engine.step()

    def reset(self) -> None:
        """Does nothing: this policy keeps no state between decisions."""


def _decision(done: Done, start: float) -> Decision:
    return Decision(
        actions=done.actions,
        value=done.value,
        spread=done.spread,
        steps_used=len(done.deltas),
        observation_time=start,
        seed=done.job.seed,
        timing={"inference": time.monotonic() - start},
        candidates_scored=done.candidates_scored,
        deltas=done.deltas,
    )
