"""The policy interface shared by the torch, the ONNX and the remote policy, and what a policy returns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.plant import Observation
from rql_deploy.seeding import check_seed

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
    candidates_scored: int = 1
    """Candidates among which V chose; fewer than asked for when there was no time for all."""
    deltas: tuple[float, ...] = ()
    """Flow time covered by each refinement step; with the seed and the observation they determine the chunk.
    Empty if not known."""


class ActOptions(TypedDict, total=False):
    """What `act` and `stream` of every policy take by keyword; a policy may not have the last two."""

    deadline: float | None
    """Seconds from now; a remote policy raises `DeadlineMissed` when it passes."""
    candidates: int
    """Chunks to make from different noise; the one with the highest V is returned."""
    value: bool
    """Also return V and spread of the chunk."""
    seed: int | None
    """Seed of the noise, from 0 to 2^53 - 1; drawn afresh if None."""
    prune: Sequence[tuple[int, int]]
    """(k, keep): after refinement step k only the `keep` candidates of highest V go on."""
    prefix: NDArray[np.float32] | None
    """`[n, A]`: actions that will be played whatever is decided; the chunk goes on from them."""


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """`ActOptions` with the default of each."""

    deadline: float | None = None
    candidates: int = 1
    value: bool = False
    seed: int | None = None
    prune: Sequence[tuple[int, int]] = ()
    prefix: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], *, without: Collection[str] = ()) -> ResolvedOptions:
        """The options of a call to a policy that has all but those `without`.

        Raises TypeError for an option that the policy does not have, ContractError for a seed that is none.
        """
        known = [option.name for option in fields(cls) if option.name not in without]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(known)}"
                raise TypeError(f"this policy has no option '{name}': {hint}")
        if options.get("seed") is not None:
            options = {**options, "seed": check_seed(options["seed"])}
        return cls(**options)


class Policy(Protocol):
    """Anything that decides.

    Chunk playback, seeding, timing and recording are wrappers with this same interface.
    """

    @property
    def contract(self) -> Contract:
        """What goes in and what comes out."""
        ...

    def act(self, observation: Observation, **options: Unpack[ActOptions]) -> Decision:
        """Decide on an action chunk.

        Args:
            observation: named fields, in the plant's units.
            options: see `ActOptions`.

        Raises:
            ContractError: a field is missing, misshapen or not finite.
            DeadlineMissed: nothing arrived in time.
        """
        ...

    def reset(self) -> None:
        """Forget the episode so far."""
        ...
