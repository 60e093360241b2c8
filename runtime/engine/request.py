"""What goes into the engine and what comes out: a job is one request for an action chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
ZERO = np.float32(0.0)


@dataclass(slots=True, eq=False)
class Job:
    """One request for an action chunk, and how far it has come."""

    ticket: Any
    """Whose it is; the engine hands it back untouched."""
    fields: Mapping[str, Array]
    """Observation fields `[1, *shape]`, checked."""
    seed: int
    received: float
    """Seconds on the engine's clock."""
    due: float | None = None
    """When the reply must leave, on the engine's clock."""
    candidates: int = 1
    """Chunks to make; the one with the highest V is returned."""
    value: bool = False
    """Also return V and spread."""
    stream: bool = False
    """Emit the preview after every refinement step."""
    prune: tuple[tuple[int, int], ...] = ()
    """(k, keep): after refinement step k, go on with the `keep` candidates of highest V."""
    deltas: tuple[float, ...] | None = None
    """A schedule to follow to the letter instead of the F equal steps; sums to 1."""
    first: int = 0
    """Number of the first candidate: its noise is the seed's row of that number."""

    # Progress. `alive` are the numbers of the candidates whose rows are in the batch, in row order.
    alive: list[int] = field(default_factory=list)
    f: np.float32 = ZERO
    taken: list[float] = field(default_factory=list)
    """Deltas of the steps taken so far."""
    pruned: list[tuple[int, list[int]]] = field(default_factory=list)
    """(k, candidates kept) wherever some were given up."""
    preview: Array | None = None
    """`[alive, h, A]` after the latest step."""
    started: float = 0.0
    judged: bool = False
    """V decides among the candidates, or was asked for, and still fits the budget."""
    shortened: bool = False
    """Fewer, larger steps than the schedule's."""


class Preview(NamedTuple):
    """A usable action after refinement step k of a streamed job."""

    job: Job
    k: int
    actions: Array
    """`[h, A]`: the first candidate, or the best when V was asked for."""
    value: float | None
    spread: float | None


class Done(NamedTuple):
    """The decision."""

    job: Job
    actions: Array
    """`[h, A]`, in the plant's units."""
    value: float | None
    spread: float | None
    candidate: int
    """Number of the returned candidate."""
    compared: int
    """Candidates among which V chose; 1 when it did not."""
    deltas: tuple[float, ...]
    """Of the refinement steps taken; they sum to 1."""
    queue: float
    """Seconds from receipt to the first computation."""
    inference: float
    """Seconds from there to the decision."""


class Expired(NamedTuple):
    """The budget was spent before anything was computed; nothing will be."""

    job: Job


class EpisodePart(NamedTuple):
    """Some ticks of an episode, as a control loop saw them: what the policy's rewards are known from."""

    epoch: int
    """Of the loop's connection; with `episode` it names the episode."""
    episode: int
    tick: int
    """Number of the first row within the episode."""
    end: bool
    """Whether the episode ends with these rows."""
    fields: Mapping[str, NDArray[Any]]
    """Observation fields `[n, *shape]`, of the contract's dtypes; with `end` there may be one row more, after the last action."""
    actions: Array
    """`[n, A]`, as carried out."""
    rewards: Array | None
    """`[n]`"""
    success: NDArray[np.bool_] | None
    """`[n]`: whether the task had succeeded after the action."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(value.nbytes for value in self.fields.values()) + self.actions.nbytes


Event = Preview | Done | Expired
