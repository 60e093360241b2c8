"""Input and output of the engine: a `Job` asks for an action chunk, an `Event` is what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rql_deploy.runtime.wire.notes import TickNote

from .continuation import Continuation
from .history import History
from .shares import Client

Array = NDArray[np.float32]
ZERO = np.float32(0.0)
NOBODY = Client()


class Job(Struct, eq=False):
    """One request for an action chunk, and its progress."""

    reply_context: Any
    """What the caller needs to send the reply; the engine does not look at it."""
    fields: Mapping[str, Array]
    """Observation fields `[1, *shape]`, checked against the contract."""
    seed: int
    received: float
    """Seconds on the engine's clock."""
    due: float | None = None
    """When the reply must leave, on the engine's clock; None for no deadline."""
    candidates: int = 1
    """Chunks to generate; the one with the highest V is returned."""
    value: bool = False
    """Also return V and spread."""
    stream: bool = False
    """Emit the preview after every refinement step."""
    prune: tuple[tuple[int, int], ...] = ()
    """(k, keep): after refinement step k only the `keep` candidates of highest V continue."""
    deltas: tuple[float, ...] | None = None
    """Exact schedule to use instead of the F equal steps; sums to 1."""
    candidate_offset: int = 0
    """Number of the first candidate; the noise of candidate i is row i of the seed's noise."""
    pessimism: float = 0.0
    """c: candidates are ranked by V - c * spread."""
    continuation: Continuation | None = None
    """How the chunk continues the actions that play while it is computed."""
    client: Client = NOBODY
    """Whose share of the engine's time this takes: a connection and its peer."""
    history: History | None = None
    """Filled step by step, where it is to be recorded."""

    # Progress.
    active: list[int] = []
    """Numbers of the candidates whose rows are in the batch, in row order; never changed, only replaced."""
    f: np.float32 = ZERO
    step_sizes: list[float] = []
    """Flow time covered by each step so far."""
    pruned: list[tuple[int, list[int]]] = []
    """(k, candidates kept) for every time candidates were dropped."""
    preview: Array | None = None
    """`[len(active), h, A]` after the latest step."""
    noise: Array | None = None
    """`[candidate_offset + candidates, hA]`: what the flow begins with, where the continuation needs it."""
    passes: int = 1
    """Of the flow: an inversion goes forth, back and forth again."""
    passes_left: int = 0
    """Passes after this one."""
    target: float | None = None
    """When the engine wants it done: when it is due, or earlier where many others wait."""
    started: float = 0.0
    needs_value: bool = False
    """Whether V is still to be computed: it was asked for or selects the candidate, and fits the budget."""
    steps_reduced: bool = False
    """Whether the job takes fewer, larger steps than scheduled because time is short."""

    @property
    def scored(self) -> bool:
        """Whether its decision needs V: to tell it, or to choose among candidates."""
        return self.value or self.candidates > 1

    @property
    def stepwise(self) -> bool:
        """Whether something happens between its refinement steps."""
        return bool(
            self.stream or self.prune or self.deltas or self.candidate_offset or self.continuation is not None
        )

    @property
    def rows(self) -> int:
        """Rows that it asks for: its candidates, three times where each takes three passes."""
        inverts = self.continuation is not None and self.continuation.method == "inversion"
        return self.candidates * (3 if inverts else 1)

    def start(self, noise: Array, now: float) -> Array:
        """Begin at `now` with `noise` `[candidate_offset + candidates, hA]`; returns the candidates' rows."""
        self.started = now
        self.active = list(range(self.candidate_offset, self.candidate_offset + self.candidates))
        self.needs_value = self.scored
        if self.continuation is not None:
            self.noise = noise if self.continuation.needs_noise else None
            self.passes = 3 if self.continuation.method == "inversion" else 1
            self.passes_left = self.passes - 1
        return noise[self.candidate_offset :]

    def rank(self, values: Array, spreads: Array) -> Array:
        """What candidates are chosen by, highest first."""
        return values - np.float32(self.pessimism) * spreads if self.pessimism else values

    def hand_out(self, chunk: Array) -> Array:
        """The chunk `[h, A]` as it is sent, which begins with the committed actions."""
        return chunk if self.continuation is None else self.continuation.in_place(chunk)

    def note_preview(self) -> None:
        """Keep the preview of the latest step, where it is recorded."""
        if self.history is not None and self.preview is not None:
            self.history.add_preview(len(self.step_sizes), self.active, self.preview)

    def note_scores(self, values: Array, spreads: Array, *, partial: bool = False) -> None:
        """Keep V of the active candidates, where it is recorded."""
        if self.history is not None:
            self.history.add_scores(len(self.step_sizes), self.active, values, spreads, partial=partial)

    def keep_best(self, values: Array, spreads: Array, keep: int) -> NDArray[np.bool_]:
        """Go on with the `keep` candidates of highest rank; returns the mask `[len(active)]` of those.

        V is that of the partial actions.
        """
        self.note_scores(values, spreads, partial=True)
        best = np.zeros(len(values), bool)
        best[np.argsort(-self.rank(values, spreads), kind="stable")[:keep]] = True
        self.active = [number for number, stays in zip(self.active, best, strict=True) if stays]
        assert self.preview is not None
        self.preview = self.preview[best]
        self.pruned.append((len(self.step_sizes), list(self.active)))
        return best


class Task(Struct, eq=False):
    """Rows that a client holds, to be refined or valued (`slices.py`)."""

    reply_context: Any
    client: Client = NOBODY


class Preview(NamedTuple):
    """A complete action after refinement step k of a streamed job."""

    job: Job
    k: int
    actions: Array
    """`[h, A]`: of the first candidate, or of the one with the highest V when V was asked for."""
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
    candidates_scored: int
    """Candidates that V chose among; 1 when V was not computed."""
    deltas: tuple[float, ...]
    """Flow time covered by each refinement step; they sum to 1."""
    queue: float
    """Seconds from receipt to the first computation."""
    inference: float
    """Seconds from the first computation to the decision."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that it keeps in memory."""
        history = self.job.history
        size = sum(value.nbytes for value in self.job.fields.values()) + self.actions.nbytes
        return size if history is None else size + history.nbytes


class Expired(NamedTuple):
    """The budget was spent before the first computation; the job is dropped."""

    job: Job
    waited: float
    """Seconds from receipt."""


class Computed(NamedTuple):
    """The result of a task."""

    job: Task
    arrays: Mapping[str, Array]


class EpisodePart(NamedTuple):
    """Some ticks of an episode as reported by a control loop, with the rewards that only the loop knows."""

    epoch: int
    """Epoch of the loop's connection; together with `episode` it identifies the episode."""
    episode: int
    tick: int
    """Index of the first row within the episode."""
    end: bool
    """Whether the episode ends with these rows."""
    fields: Mapping[str, NDArray[Any]]
    """Observation fields `[n, *shape]` in the contract's dtypes; `[n + 1, *shape]` if `end` comes with a last
    observation."""
    actions: Array
    """`[n, A]`, as commanded."""
    rewards: Array | None
    """`[n]`"""
    success: NDArray[np.bool_] | None
    """`[n]`: whether the task had succeeded after the action."""
    intervened: NDArray[np.bool_] | None = None
    """`[n]`: whether the action was not the policy's."""
    ages: Array | None = None
    """`[n]`: seconds from the begin of the tick to the arrival of this part."""
    notes: Sequence[TickNote | None] | None = None
    """`n` of them, from a real-time loop."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(value.nbytes for value in self.fields.values()) + self.actions.nbytes


Event = Preview | Done | Expired | Computed
FINAL = (Done, Expired, Computed)
"""Events after which the engine knows the job or task no more."""


def decision(job: Job, scores: tuple[Array, Array] | None, now: float) -> Done:
    """The decision of a job with its latest preview; `scores` are V and spread of the active candidates."""
    assert job.preview is not None
    best, value, spread = 0, None, None
    if scores is not None:
        values, spreads = scores
        job.note_scores(values, spreads)
        best = int(job.rank(values, spreads).argmax())
        if job.value:
            value, spread = float(values[best]), float(spreads[best])
    deltas = tuple(job.step_sizes)
    if deltas[-1] < 0.0:
        # On the way back to noise: the preview is the chunk that was there before.
        deltas = deltas[: next(k for k, delta in enumerate(deltas) if delta < 0.0)]
    elif job.f < 1.0:
        # The last step of the preview went to f = 1.
        deltas = (*deltas[:-1], float(np.float32(1.0) - (job.f - np.float32(deltas[-1]))))
    return Done(
        job=job,
        actions=job.hand_out(job.preview[best]),
        value=value,
        spread=spread,
        candidate=job.active[best],
        candidates_scored=1 if scores is None else len(job.active),
        deltas=deltas,
        queue=job.started - job.received,
        inference=now - job.started,
    )
