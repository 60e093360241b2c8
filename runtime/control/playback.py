"""Chunk playback: which action of which chunk is due in a tick, for open loop, prefetch and anytime.

A chunk made from the observation of tick t_obs holds the actions of ticks t_obs, t_obs + 1, ... While the
policy computes, the previous chunk plays on; when the new chunk arrives, its first actions are past and are
skipped. A held tick does not count as past, because the action that was due has not been played. Positions
are therefore counted in actions played, not in ticks; without holds the two are the same. Nothing here uses a
clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.policy import MAX_COUNT, read_whole

from .safety import zero_on_hold

Mode = Literal["open-loop", "prefetch", "anytime"]
MODES: tuple[Mode, ...] = ("open-loop", "prefetch", "anytime")
ROUNDING = 1e-5
"""Action units; a smaller residual is rounding."""
REMEMBERED_DELAYS = 50
"""Latest decisions whose delays determine `prefetch_ticks`."""


@dataclass(frozen=True)
class DeltaBounds:
    """Which dimensions are delta motion, and their bounds."""

    dimensions: NDArray[np.bool_]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def delta_bounds(
    plant: PlantDescription, low: NDArray[np.float64], high: NDArray[np.float64]
) -> DeltaBounds | None:
    """Dimensions whose commands are known to add up to the motion: those whose controller is named."""
    # Commands to OGBench's arm run ahead of it by far more than it moves in a tick: compensation there cost a
    # cube task nearly all its successes.
    known = np.array([action.mode == "delta" and action.controller != "" for action in plant.actions])
    motion = known & zero_on_hold(plant)
    return DeltaBounds(motion, low, high) if motion.any() else None


class Playing(NamedTuple):
    """What the chunk that plays has left."""

    actions: NDArray[np.float32]
    """`[n, A]`, from the one that is due on."""
    committed: int
    """Of these, the actions that play before the next chunk is there."""


@dataclass(frozen=True)
class Chunk:
    """The chunk that is playing, and the observation it was made from."""

    actions: NDArray[np.float32]
    """`[h, A]`."""
    position: int
    """Of its first action, counted in actions played since the start."""
    observed: float
    """When its observation was taken, on the loop's clock."""
    steps: int
    """Refinement steps behind it."""
    number: int
    """Number of the decision, from 0."""
    displacement: NDArray[np.float64]
    """`[A]`: sum of all commands before its observation."""


@dataclass(frozen=True)
class ScheduledAction:
    """The action that is due in a tick."""

    action: NDArray[np.float32]
    """`[A]`."""
    index: int
    """Index in the chunk."""
    chunk: Chunk


@dataclass(frozen=True)
class _PendingRequest:
    position: int
    displacement: NDArray[np.float64]
    observed: float


class Playback:
    """Plays chunks, and says when to request the next one.

    - open loop: request when the chunk has run out, hold until the result is there, play all its actions (as
      the paper does).
    - prefetch: request `prefetch_ticks` before the chunk runs out; the new chunk takes over at the action
      that is due.
    - anytime: as prefetch. If decisions take more than a tick, previews are requested too, and an action that
      is due before the last refinement step is taken from the newest preview.
    """

    def __init__(
        self,
        h: int,
        mode: Mode = "prefetch",
        *,
        prefetch_ticks: int | None = None,
        min_preview_steps: int = 1,
        delta: DeltaBounds | None = None,
        replan_every: int | None = None,
    ):
        """
        Args:
            prefetch_ticks: ticks from request to need; None: the p90 of the measured delays.
            min_preview_steps: with `anytime`, the delay that counts is that of the first preview with so many
            steps.
            delta: turns on delay compensation for these dimensions (see `_compensate`).
            replan_every: actions after which a chunk is renewed; None: h. Where the next one is late,
            prefetch and anytime play on.

        Raises UserError for a mode that does not exist and ticks out of range, TypeError where they are no
        whole number.
        """
        if mode not in MODES:
            raise UserError(f"there is no playback mode {mode!r}", hint=f"pass one of {', '.join(MODES)}")
        if prefetch_ticks is not None:
            prefetch_ticks = read_whole("prefetch_ticks", prefetch_ticks, 0, MAX_COUNT)
        self.h, self.mode, self._min_preview_steps = h, mode, min_preview_steps
        self._renew = read_replan_every(replan_every, h)
        self._last = self._renew if mode == "open-loop" else h
        self.requested = 0
        """Decisions requested so far."""
        self._fixed = 0 if mode == "open-loop" else prefetch_ticks
        self._delta = delta
        # Dimensions in which the last command, and the one now due, differ from the policy's action.
        self._compensated = self._compensating = np.zeros(1, bool)
        self._position, self._displacement = 0, np.zeros(1)
        self._pending: _PendingRequest | None = None
        self._chunk: Chunk | None = None
        self._delays: deque[int] = deque(maxlen=REMEMBERED_DELAYS)
        self._completions: deque[int] = deque(maxlen=REMEMBERED_DELAYS)
        self._delay_measured = False

    @property
    def prefetch_ticks(self) -> int:
        """Ticks before the end of a chunk at which the next one is requested.

        One request runs at a time, so with a delay beyond half a chunk some ticks are held. Requesting
        earlier than half a chunk before the end would waste actions of the next chunk, and with a delay of a
        whole chunk requesting early gains nothing.
        """
        if self._fixed is not None:
            return min(self._fixed, self.h - 1)
        delay = _p90(self._delays) if self._delays else 1
        return delay if 2 * delay <= self.h else self.h // 2 if delay < self.h else 0

    @property
    def previews(self) -> bool:
        """Whether to request previews: with `anytime`, if decisions take more than a tick."""
        return self.mode == "anytime" and (not self._completions or _p90(self._completions) > 1)

    @property
    def pending(self) -> bool:
        """Whether a request runs whose decision is not complete."""
        return self._pending is not None

    @property
    def requested_at(self) -> float | None:
        """When the observation of the running request was taken."""
        return None if self._pending is None else self._pending.observed

    @property
    def playing(self) -> Playing | None:
        """What plays while the policy computes; None when nothing does."""
        if self._chunk is None or self._position >= self._chunk.position + self._last:
            return None
        actions = self._chunk.actions[self._position - self._chunk.position : self._last]
        return Playing(actions, min(self.prefetch_ticks, len(actions)))

    @property
    def remaining(self) -> int:
        """Actions of the chunk that have not been played, before it is to be renewed."""
        return 0 if self._chunk is None else max(0, self._chunk.position + self._renew - self._position)

    def should_request(self) -> bool:
        """Whether to send this tick's observation to the policy."""
        return self._pending is None and self.remaining <= self.prefetch_ticks

    def request(self, observed: float) -> int:
        """Note that this tick's observation, taken at `observed`, is sent; returns the decision's number."""
        self._pending = _PendingRequest(self._position, self._displacement, observed)
        self._delay_measured = False
        self.requested += 1
        return self.requested - 1

    def receive(
        self, number: int, actions: NDArray[np.float32], steps: int, *, last: bool, delay: float
    ) -> bool:
        """Take the chunk `[h, A]` of request `number`, or a preview of it, `delay` ticks after the request.

        Returns False, and does nothing, when that request is no longer the latest.
        """
        pending = self._pending
        if pending is None or number != self.requested - 1:
            return False
        self._chunk = Chunk(actions, pending.position, pending.observed, steps, number, pending.displacement)
        # Even a result within the same tick is first played at the next one.
        ticks = max(1, ceil(delay - 1e-9))
        if not self._delay_measured and (
            last or (self.mode == "anytime" and steps >= self._min_preview_steps)
        ):
            self._delays.append(ticks)
            self._delay_measured = True
        if last:
            self._completions.append(ticks)
            self._pending = None
        return True

    def missed(self, number: int) -> bool:
        """Request `number` has failed; the chunk plays on. False when it is not the latest request."""
        if self._pending is None or number != self.requested - 1:
            return False
        self._pending = None
        return True

    def due(
        self, allowed: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    ) -> ScheduledAction | None:
        """The action of this tick; None: hold.

        `allowed` are least and greatest command `[A]` that the safety filter accepts; None: the delta bounds.
        """
        if self._chunk is None:
            return None
        index = self._position - self._chunk.position
        if index >= self._last:
            return None
        return ScheduledAction(self._compensate(self._chunk, index, allowed), index, self._chunk)

    def _compensate(
        self, chunk: Chunk, index: int, allowed: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    ) -> NDArray[np.float32]:
        """Action `index` of the chunk; delta motion is corrected for what was played meanwhile.

        The chunk expects the plant to have moved by the sum of its first `index` actions. Other actions were
        played instead. The residual, expected minus actual motion, is added as far as `allowed` permits; the
        rest stays for the next tick. After a compensated command the policy's next action may violate the
        rate limit; it is then clipped to `allowed`.
        """
        action: NDArray[np.float32] = chunk.actions[index]
        if self._delta is None:
            return action
        expected = chunk.actions[:index].sum(axis=0, dtype=np.float64)
        residual = expected - (self._displacement - chunk.displacement)
        self._compensating = np.zeros(1, bool)
        if not (np.abs(residual[self._delta.dimensions]) > ROUNDING).any() and not self._compensated.any():
            return action
        low, high = allowed or (self._delta.low, self._delta.high)
        # An action that is out of bounds by itself is not clipped: the safety filter has to see it.
        clip = self._compensated & (action >= self._delta.low) & (action <= self._delta.high)
        corrected = np.clip(
            action + residual,
            np.where(clip, low, np.minimum(low, action)),
            np.where(clip, high, np.maximum(high, action)),
        )
        mixed: NDArray[np.float32] = np.where(self._delta.dimensions, corrected, action).astype(np.float32)
        self._compensating = np.abs(mixed - action) > ROUNDING
        return mixed

    def played(self, command: NDArray[np.float32]) -> None:
        """The action that was due went to the plant, as `command` `[A]`."""
        self._position += 1
        self._displacement, self._compensated = self._displacement + command, self._compensating

    def held(self, command: NDArray[np.float32]) -> None:
        """A hold went to the plant, as `command` `[A]`: delta motion that ramps down moves the plant, too."""
        self._displacement, self._compensated = self._displacement + command, np.zeros(1, bool)

    def discard(self) -> None:
        """Drop the chunk, because the safety filter rejected its action; a running request goes on."""
        self._chunk = None

    def clear(self) -> None:
        """Drop chunk and request, for instance after a fault; the measured delays stay."""
        self._pending, self._chunk = None, None


def read_replan_every(replan_every: int | None, h: int) -> int:
    """Actions of a chunk that are played: all h if None. Raises TypeError and UserError for no such count."""
    return h if replan_every is None else read_whole("replan_every", replan_every, 1, h)


def _p90(delays: Sequence[int]) -> int:
    """p90 of the delays."""
    # Not the maximum: one decision as late as a whole chunk would end prefetching for the next 50.
    return sorted(delays)[ceil(0.9 * len(delays)) - 1]
