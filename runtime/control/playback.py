"""Which action of which chunk is due: open loop, prefetch and anytime playback, in ticks, without a clock.

A chunk made from the observation of tick t_obs says what to do at ticks t_obs, t_obs + 1, ... While the
policy thinks, the chunk before it goes on playing; by the time the new one arrives its first actions are
past, and are dropped. What counts as past is what was *played*: a tick that was held carried out no action,
so the one that was due is still due. Positions in the plan are therefore counted in actions played, not in
ticks passed; without holds the two are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["open-loop", "prefetch", "anytime"]
MODES: tuple[Mode, ...] = ("open-loop", "prefetch", "anytime")
ROUNDING = 1e-5
"""Action units below which what is owed is rounding."""
REMEMBERED_DELAYS = 50
"""Decisions whose delay the lead is estimated from."""


@dataclass(frozen=True)
class DeltaBounds:
    """Which dimensions are delta motion, and their bounds."""

    dimensions: NDArray[np.bool_]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """Actions under way to the plant, and what they were made from."""

    actions: NDArray[np.float32]
    """`[h, A]`."""
    position: int
    """Of its first action in the plan."""
    observed: float
    """When its observation was taken, on the loop's clock."""
    steps: int
    """Refinement steps it has had."""
    number: int
    """Of the decision, from 0."""
    moved: NDArray[np.float64]
    """`[A]`: sum of all commands before its observation."""


@dataclass(frozen=True)
class Due:
    """The action of a tick."""

    action: NDArray[np.float32]
    """`[A]`."""
    index: int
    """Its place in the chunk."""
    chunk: Chunk


@dataclass(frozen=True)
class _Asked:
    position: int
    moved: NDArray[np.float64]
    observed: float


class Playback:
    """Plays chunks, and says when the next one should be asked for.

    open loop  ask when the chunk has run out, hold until the answer is there, play it from its first action
    (the paper's way) prefetch   ask `lead` ticks before it runs out, while it plays; the answer takes over at
    the action that is due anytime    as prefetch; where decisions take more than a tick, with previews: an
    action that is due before the last refinement step
               is taken from the newest preview
    """

    def __init__(
        self,
        h: int,
        mode: Mode = "prefetch",
        *,
        lead: int | None = None,
        enough: int = 1,
        delta: DeltaBounds | None = None,
    ):
        """`lead` fixes the ticks between asking and needing; left out, it follows the delays seen (what 90 %
        of late stayed within).

        With `anytime` the delay that counts is that of the first preview with `enough` refinement steps. With
        `delta` a chunk that takes over makes up for what was played in its first actions' stead
        (`_due_action`).
        """
        self.h, self.mode, self._enough = h, mode, enough
        self.asked = 0
        """Decisions asked for so far."""
        self._fixed = 0 if mode == "open-loop" else lead
        self._delta = delta
        self._bent = self._bending = np.zeros(1, bool)
        self._position, self._moved = 0, np.zeros(1)
        self._pending: _Asked | None = None
        self._chunk: Chunk | None = None
        self._delays: deque[int] = deque(maxlen=REMEMBERED_DELAYS)
        self._completions: deque[int] = deque(maxlen=REMEMBERED_DELAYS)
        self._learnt = False

    @property
    def lead(self) -> int:
        """Ticks before the end of a chunk at which the next is asked for.

        One question is under way at a time, so with a delay beyond half a chunk some ticks have to be held.
        Asking earlier than half a chunk before its end would waste actions of the next one, and with a delay
        of a whole chunk asking early gains nothing at all.
        """
        if self._fixed is not None:
            return min(self._fixed, self.h - 1)
        delay = _expected(self._delays) if self._delays else 1
        return delay if 2 * delay <= self.h else self.h // 2 if delay < self.h else 0

    @property
    def previews(self) -> bool:
        """Whether the next question should be answered with previews: with `anytime`, unless decisions are
        known to be complete within a tick, when none would ever be played."""
        return self.mode == "anytime" and (not self._completions or _expected(self._completions) > 1)

    @property
    def pending(self) -> bool:
        """Whether a decision has been asked for and is not complete."""
        return self._pending is not None

    @property
    def asked_at(self) -> float | None:
        """When the observation of the question under way was taken."""
        return None if self._pending is None else self._pending.observed

    @property
    def committed(self) -> NDArray[np.float32] | None:
        """`[left, A]`: what will be played while the policy thinks; None when nothing is left."""
        if self._chunk is None or not self.left:
            return None
        return self._chunk.actions[self._position - self._chunk.position :]

    @property
    def left(self) -> int:
        """Actions that can still be played."""
        return 0 if self._chunk is None else max(0, self._chunk.position + self.h - self._position)

    def wants(self) -> bool:
        """Whether this tick's observation should be sent to the policy."""
        return self._pending is None and self.left <= self.lead

    def ask(self, observed: float) -> int:
        """Note that this tick's observation, taken at `observed`, is sent; returns the decision's number."""
        self._pending, self._learnt = _Asked(self._position, self._moved, observed), False
        self.asked += 1
        return self.asked - 1

    def receive(
        self, number: int, actions: NDArray[np.float32], steps: int, *, last: bool, delay: float
    ) -> bool:
        """Take the answer `[h, A]` to question `number`, or a preview of it, `delay` ticks after the
        question.

        Returns False, and does nothing, when that question is no longer the latest.
        """
        asked = self._pending
        if asked is None or number != self.asked - 1:
            return False
        self._chunk = Chunk(actions, asked.position, asked.observed, steps, number, asked.moved)
        # An answer within the tick needs a lead of one all the same: it is used at the next.
        ticks = max(1, ceil(delay - 1e-9))
        if not self._learnt and (last or (self.mode == "anytime" and steps >= self._enough)):
            self._delays.append(ticks)
            self._learnt = True
        if last:
            self._completions.append(ticks)
            self._pending = None
        return True

    def missed(self, number: int) -> bool:
        """Question `number` has no answer: ask again. The rest of the present chunk may play. False when it
        is not the latest."""
        if self._pending is None or number != self.asked - 1:
            return False
        self._pending = None
        return True

    def due(self, allowed: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None) -> Due | None:
        """The action of this tick, or None: hold. `allowed` `[A]`, `[A]`: least and greatest command that the
        safety filter lets pass; left out, the bounds of delta motion."""
        if self._chunk is None:
            return None
        index = self._position - self._chunk.position
        return (
            Due(self._due_action(self._chunk, index, allowed), index, self._chunk) if index < self.h else None
        )

    def _due_action(
        self, chunk: Chunk, index: int, allowed: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    ) -> NDArray[np.float32]:
        """Action `index` of the chunk; of delta motion, with what is owed.

        A chunk means the plant to have moved by the sum of its first actions when this one comes. While it
        was being made, other actions were played; the difference would stay until the next observation. It is
        added here, as far as is allowed at once. After a command that was changed so, the chunk's next action
        may be out of reach; then what is in reach is due, and the rest owed.
        """
        action: NDArray[np.float32] = chunk.actions[index]
        if self._delta is None:
            return action
        owed = chunk.actions[:index].sum(axis=0, dtype=np.float64) - (self._moved - chunk.moved)
        self._bending = np.zeros(1, bool)
        if not (np.abs(owed[self._delta.dimensions]) > ROUNDING).any() and not self._bent.any():
            return action
        low, high = allowed or (self._delta.low, self._delta.high)
        # What the policy itself asked for beyond the limits is for the safety filter to judge.
        ours = self._bent & (action >= self._delta.low) & (action <= self._delta.high)
        made_up = np.clip(
            action + owed,
            np.where(ours, low, np.minimum(low, action)),
            np.where(ours, high, np.maximum(high, action)),
        )
        mixed: NDArray[np.float32] = np.where(self._delta.dimensions, made_up, action).astype(np.float32)
        self._bending = np.abs(mixed - action) > ROUNDING
        return mixed

    def played(self, command: NDArray[np.float32]) -> None:
        """The action that was due went to the plant, as `command` `[A]`."""
        self._position += 1
        self._moved, self._bent = self._moved + command, self._bending

    def held(self, command: NDArray[np.float32]) -> None:
        """A hold went to the plant, as `command` `[A]`: one that delta motion ramps down in moves it, and is
        made up for too."""
        self._moved, self._bent = self._moved + command, np.zeros(1, bool)

    def discard(self) -> None:
        """Drop the present chunk: the safety filter refused an action of it. The answer under way, if any, is
        still welcome."""
        self._chunk = None

    def forget(self) -> None:
        """Drop everything but what is known about delays: after a fault, no action from before it may be
        played."""
        self._pending, self._chunk = None, None


def _expected(delays: Sequence[int]) -> int:
    """Ticks that 90 % stayed within. Not the most: one straggler of a whole chunk would have the next 50
    decisions asked for too late."""
    return sorted(delays)[ceil(0.9 * len(delays)) - 1]
