"""Sliced work of all clients: whose slice runs next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from .request import Event, Preview
from .shares import Client, FairShare
from .slices import Slices


class SliceQueue:
    """One piece of work after the other for each client, slices of different clients in turn."""

    def __init__(self, shares: FairShare, clock: Callable[[], float]):
        self._shares, self._clock = shares, clock
        self.work: dict[Client, deque[Slices]] = {}
        """By client, in the order in which it is done."""
        self._ran_last = False

    @property
    def clients(self) -> Collection[Client]:
        """Clients with sliced work."""
        return self.work.keys()

    def add(self, client: Client, work: Slices) -> None:
        """Queue work behind the client's earlier work."""
        self._shares.enter(client)
        self.work.setdefault(client, deque()).append(work)

    def drop(self, client: Client) -> int:
        """Forget a client's work; how many pieces it was."""
        return len(self.work.pop(client, ()))

    def next_client(self, others: Collection[Client]) -> Client | None:
        """Whose slice runs next; None when there is none, or work of the `others` comes first."""
        if not self.work:
            return None
        lead = self._shares.lead
        client = min(self.work, key=lead)
        if others:
            sliced, first = lead(client), min(map(lead, others))
            # Equals take turns.
            if first < sliced or (first == sliced and self._ran_last):
                self._ran_last = False
                return None
        self._ran_last = True
        return client

    def run(self, client: Client) -> tuple[int, list[Event]]:
        """Run this client's next slice; returns the rows of a refinement step in it, and what came of it."""
        start = self._clock()
        queue = self.work[client]
        rows, events = next(queue[0])
        if any(not isinstance(event, Preview) for event in events):
            queue.popleft()
            if not queue:
                del self.work[client]
        self._shares.charge([(client, self._clock() - start)])
        return rows, events
