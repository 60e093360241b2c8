"""A request for several decisions: they are made one by one and answered together."""

from __future__ import annotations

from collections.abc import Sequence

from rql_deploy.runtime.engine.request import Done, Expired


class Batch:
    """Collects what came of each of `rows` jobs.

    The engine ends them in any order, some perhaps steps before others. A batch is answered whole: where one
    of its jobs expired it is refused, as its client has asked for a decision for each observation.
    """

    def __init__(self, rows: int, budget: float):
        """`budget`: seconds that the request gave for all of them."""
        self.budget = budget
        self._done: list[Done | None] = [None] * rows
        self._expired: Expired | None = None
        self._missing = rows

    def add(self, row: int, event: Done | Expired) -> bool:
        """Take in what came of job number `row`; whether it was the last that was missing."""
        if isinstance(event, Done):
            self._done[row] = event
        elif self._expired is None:
            self._expired = event
        self._missing -= 1
        return not self._missing

    @property
    def expired(self) -> Expired | None:
        """The first of its jobs that was dropped, if any was."""
        return self._expired

    @property
    def decisions(self) -> Sequence[Done]:
        """All decisions, in the order of the observations; only where none expired."""
        return [done for done in self._done if done is not None]
