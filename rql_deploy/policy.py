"""The policy interface shared by the torch, the ONNX and the remote policy, and what a policy returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.plant import Observation

MAX_CANDIDATES = 256
"""Most chunks that one decision may choose among."""
DEFAULT_CANDIDATES = 4
"""Chunks that `run` and `evaluate` choose among unless told otherwise: what benchmarks/value_guided.py shows
to be best over its tasks."""


@dataclass(frozen=True)
class Decision:
    """One answer of a policy: an action chunk and what is known about it."""

    actions: NDArray[np.float32]
    """`[h, A]`, in the plant's units."""
    value: float | None
    """V of the returned chunk, (mean over the members), if asked for."""
    spread: float | None
    """Standard deviation of V over the members, if asked for."""
    steps_used: int
    """Refinement steps spent on the returned chunk."""
    observation_time: float
    """When the observation was handed to `act`: seconds on the caller's monotonic clock."""
    seed: int
    """What the noise was made from; the same seed and observation give the same chunk."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: `inference` (the policy itself) and, for a remote policy, `queue`, `server` and
    `round_trip`."""
    compared: int = 1
    """Candidates among which V chose; fewer than asked for when there was no time for all."""
    deltas: tuple[float, ...] = ()
    """Flow time covered by each refinement step; with the seed and the observation they determine the chunk.
    Empty if not known."""


class Policy(Protocol):
    """Anything that decides.

    Chunk playback, seeding, timing and recording are wrappers with this same interface.
    """

    @property
    def contract(self) -> Contract:
        """What goes in and what comes out."""
        ...

    def act(
        self,
        observation: Observation,
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Decision:
        """Decide on an action chunk.

        Args:
            observation: named fields, in the plant's units.
            deadline: seconds from now; a remote policy raises `DeadlineMissed` when it passes.
            candidates: chunks to make from different noise; the one with the highest V is returned.
            value: also return V and spread of the chunk.
            seed: 64-bit seed of the noise; drawn afresh if None.

        Raises:
            ContractError: a field is missing, misshapen or not finite.
            DeadlineMissed: nothing arrived in time.
        """
        ...

    def reset(self) -> None:
        """Forget the episode so far."""
        ...
