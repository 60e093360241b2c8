"""What a recording keeps of a job's refinement steps.

Numbers are copied as they come, so that none of the engine's memory waits for the recorder.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

_Array = NDArray[np.float32]


class StepChunks(Struct, eq=False):
    """The previews of some candidates after one refinement step or several."""

    candidates: list[int]
    """Their numbers, in order."""
    steps: list[int] = []
    """Refinement steps so far."""
    actions: list[bytes] = []
    """float32 `[candidates, h, A]` of each step."""


class StepScores(Struct, eq=False):
    """V of some candidates after one refinement step or several."""

    candidates: list[int]
    """Their numbers, in order."""
    partial: bool
    """Whether of the partial actions, instead of the previews."""
    steps: list[int] = []
    """Refinement steps so far."""
    values: list[bytes] = []
    """float32 `[candidates]` of each step."""
    spreads: list[bytes] = []
    """float32 `[candidates]` of each step."""


class History(Struct, eq=False):
    """The previews of a job and every V that was computed, in order; other candidates begin a new entry."""

    previews: list[StepChunks] = []
    scores: list[StepScores] = []
    nbytes: int = 0
    """Bytes of the chunks."""

    def add_preview(self, step: int, candidates: list[int], actions: _Array) -> None:
        """Keep the chunks `[candidates, h, A]` of a step."""
        # Lists of candidates are replaced, never changed.
        if not self.previews or self.previews[-1].candidates is not candidates:
            self.previews.append(StepChunks(candidates))
        entry = self.previews[-1]
        entry.steps.append(step)
        entry.actions.append(actions.tobytes())
        self.nbytes += actions.nbytes

    def add_scores(
        self, step: int, candidates: list[int], values: _Array, spreads: _Array, *, partial: bool
    ) -> None:
        """Keep V and spread `[candidates]` of a step."""
        last = self.scores[-1] if self.scores else None
        if last is None or last.candidates is not candidates or last.partial != partial:
            self.scores.append(last := StepScores(candidates, partial))
        last.steps.append(step)
        last.values.append(values.tobytes())
        last.spreads.append(spreads.tobytes())
