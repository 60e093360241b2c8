"""A bundle behind the policy interface, in this process: the engine without a server, for evaluation and comparison."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rql_deploy.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.policy import MAX_CANDIDATES, Decision

from .engine import Engine
from .jobs import Done, Job, Preview
from .model import Model


class OnnxPolicy:
    """One request at a time through an engine of its own, to the same bytes as behind a socket."""

    def __init__(self, bundle: Bundle):
        self._model = Model(bundle)
        self._engine = Engine(self._model)
        self._fields = [field.name for field in bundle.contract.plant.fields]

    @property
    def contract(self) -> Contract:
        return self._model.contract

    def warm_up(self) -> None:
        """Run every graph, so that the first request does not pay for first-time allocations."""
        self._model.warm_up()

    def act(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
        prune: Sequence[tuple[int, int]] = (),
    ) -> Decision:
        """See `rql_deploy.policy.Policy.act`; a local policy computes to the end whatever the deadline.

        `prune` lists (k, keep): after refinement step k only the `keep` candidates of highest V go on.
        """
        start = time.monotonic()
        self._engine.submit(self._job(observation, start, candidates, value, seed, prune))
        while True:
            for event in self._engine.step():
                if isinstance(event, Done):
                    return _decision(event, start)

    def stream(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns.

        With `value`, each comes with V and spread.
        """
        start = time.monotonic()
        job = self._job(observation, start, candidates, value, seed, ())
        job.stream = True
        self._engine.submit(job)
        while self._engine.busy:
            for event in self._engine.step():
                if isinstance(event, Preview):
                    timing = {"inference": time.monotonic() - start}
                    yield Decision(event.actions, event.value, event.spread, event.k, start, job.seed, timing)
                elif isinstance(event, Done):
                    yield _decision(event, start)

    def _job(
        self,
        observation: Mapping[str, Any],
        start: float,
        candidates: int,
        value: bool,
        seed: int | None,
        prune: Sequence[tuple[int, int]],
    ) -> Job:
        if not 1 <= candidates <= MAX_CANDIDATES:
            raise ContractError(f"candidates is {candidates}: pass 1 to {MAX_CANDIDATES}")
        fields = self._model.rows({name: np.asarray(observation[name]) for name in self._fields if name in observation})
        seed = secrets.randbits(63) if seed is None else seed
        return Job(None, fields, seed, start, candidates=candidates, value=value, prune=tuple((int(k), int(keep)) for k, keep in prune))

    def reset(self) -> None:
        """Nothing is kept between decisions."""


def _decision(done: Done, start: float) -> Decision:
    return Decision(
        actions=done.actions,
        value=done.value,
        spread=done.spread,
        steps_used=len(done.deltas),
        observation_time=start,
        seed=done.job.seed,
        timing={"inference": time.monotonic() - start},
        compared=done.compared,
        deltas=done.deltas,
    )
