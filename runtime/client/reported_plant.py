"""A plant whose ticks are told to a server that records, for any loop that drives it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.plant import EpisodicPlant, carried_out
from rql_deploy.runtime.wire.notes import TickNote

from .episode_upload import EpisodeReporter


class ReportedPlant:
    """A plant whose ticks are reported, with the interface of the plant that it wraps."""

    def __init__(self, plant: EpisodicPlant, reporter: EpisodeReporter, *, notes: bool = False):
        """
        Args:
            plant: its `reward` and `success` are reported where it has them, and `intervened` (`Plant`).
            notes: whether the loop calls `note` after each tick; a tick is then reported with its note.
        """
        self.plant, self._reporter, self._notes = plant, reporter, notes
        self._seen: Mapping[str, Any] | None = None
        self._pending: dict[str, Any] | None = None
        self._over = False

    @property
    def success(self) -> bool:
        return self.plant.success

    @property
    def finished(self) -> bool:
        return self.plant.finished

    def __getattr__(self, name: str) -> Any:
        # Whatever else a plant has, such as the command that keeps it at rest.
        return getattr(self.plant, name)

    def reset(self, seed: int | None = None) -> None:
        """End the episode and start another."""
        self.end()
        self._seen, self._over = None, False
        self.plant.reset(seed)

    def observe(self) -> Mapping[str, Any]:
        """The plant's observation."""
        self._seen = self.plant.observe()
        return self._seen

    def apply(self, action: NDArray[np.float32]) -> None:
        """Carry out one action and report it.

        Actions after the episode's end, which only hold the plant, are not reported.
        """
        self.note(None)
        if not self._reporter.recording or self._over:
            self.plant.apply(action)
            return
        try:
            before = self.observe() if self._seen is None else self._seen
        except Exception:
            # A robot that cannot be observed must be held all the same, and its episode ends here.
            self._over = True
            self.plant.apply(action)
            raise
        # Copied before the plant moves on: a simulator may show its own arrays.
        before = {name: np.array(value) for name, value in before.items()}
        began = time.monotonic()
        self.plant.apply(action)
        done, intervened = carried_out(self.plant, action)
        self._pending = {
            "observation": before,
            "action": done,
            "reward": getattr(self.plant, "reward", None),
            "success": getattr(self.plant, "success", None),
            "intervened": intervened,
            "began": began,
        }
        self._seen = None
        self._over = bool(getattr(self.plant, "finished", False))
        if not self._notes:
            self.note(None)

    def note(self, note: TickNote | None) -> None:
        """Report the tick that was carried out last, if it is not yet, with what the loop noted of it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._reporter.add(**pending, note=note)
            if self._over:
                # What comes after an episode cannot fail it: a robot may be gone by then.
                last = None
                with contextlib.suppress(Exception):
                    last = self.plant.observe()
                self._reporter.finish(last)

    def end(self) -> None:
        """Report the end of the episode, if one is under way."""
        self.note(None)
        self._reporter.finish(self._seen)

    def close(self) -> None:
        """Report the end of the episode and close the plant."""
        self.end()
        self.plant.close()
