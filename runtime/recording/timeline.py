"""A recording on a time line: ticks and decisions of each episode side by side, as the page of `view` shows.

Decisions and ticks come over different connections. A tick of a real-time loop names the seed of the decision
behind it; other ticks belong to the newest decision before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract

from .messages import Bundle, Decision, EpisodeEnd, Message, Tick

SLACK = 0.1
"""Seconds by which a tick may seem to be before its decision: their times come on different ways."""


@dataclass
class EpisodeView:
    """One episode."""

    name: str
    ticks: list[Tick]
    decisions: list[Decision]
    behind: list[int] = field(default_factory=list)
    """For each tick the index of the decision behind its command; -1 for a hold or where none is known."""

    @property
    def start(self) -> float:
        """Seconds since 1970 at which it began."""
        times = [tick.time for tick in self.ticks[:1]] + [decision.time for decision in self.decisions[:1]]
        return min(times)

    def seams(self, span: NDArray[np.float64]) -> NDArray[np.float64]:
        """`[ticks]`: jump of the command where another chunk takes over, as a share of the action's range.

        It is 0 within a chunk and after a hold. `span` is high - low `[A]`.
        """
        jumps = np.zeros(len(self.ticks))
        if len(self.ticks) > 1:
            commands = np.stack([np.frombuffer(tick.action, "<f4") for tick in self.ticks]).astype(np.float64)
            behind = np.array(self.behind)
            changed = (behind[1:] != behind[:-1]) & (behind[1:] >= 0) & (behind[:-1] >= 0)
            jumps[1:] = np.where(changed, (np.abs(np.diff(commands, axis=0)) / span).max(axis=1), 0.0)
        return jumps


@dataclass
class Timeline:
    """All episodes of a recording."""

    contracts: dict[str, Contract]
    episodes: list[EpisodeView]


def make_timeline(messages: Iterable[Message]) -> Timeline:
    """Put messages on a time line. Where no loop reported its ticks, all decisions are one episode."""
    contracts: dict[str, Contract] = {}
    decisions: list[Decision] = []
    ticks: dict[tuple[int, int], dict[int, Tick]] = {}
    for message in messages:
        if isinstance(message, Bundle):
            contracts[message.contract_id] = Contract.from_json(message.contract)
        elif isinstance(message, Decision):
            decisions.append(message)
        elif not isinstance(message, EpisodeEnd):
            ticks.setdefault((message.epoch, message.episode), {}).setdefault(message.tick, message)
    decisions.sort(key=lambda decision: decision.time)
    parts = [[tick for _, tick in sorted(found.items())] for found in ticks.values()]
    parts.sort(key=lambda found: found[0].time)
    if not parts:
        found = [EpisodeView("decisions", [], decisions)] if decisions else []
        return Timeline(contracts, found)
    return Timeline(contracts, [_episode(f"episode {i}", part, decisions) for i, part in enumerate(parts)])


def _episode(name: str, ticks: list[Tick], decisions: list[Decision]) -> EpisodeView:
    named = [None if tick.note is None else tick.note.seed for tick in ticks]
    if any(seed is not None for seed in named):
        by_seed: dict[int | None, list[Decision]] = {}
        for decision in decisions:
            by_seed.setdefault(decision.seed, []).append(decision)
        made = [_newest(by_seed.get(seed, []), tick) for tick, seed in zip(ticks, named, strict=True)]
        own = sorted({id(one): one for one in made if one is not None}.values(), key=lambda one: one.time)
        index = {id(one): i for i, one in enumerate(own)}
        behind = [-1 if one is None else index[id(one)] for one in made]
    else:
        own = _between(decisions, ticks[0].time, ticks[-1].time)
        times = np.array([decision.time for decision in own])
        behind = (np.searchsorted(times, [tick.time for tick in ticks], side="right") - 1).tolist()
    return EpisodeView(name, ticks, own, behind)


def _newest(decisions: list[Decision], tick: Tick) -> Decision | None:
    """The newest decision of one seed that was there before the tick; other runs may have the same seeds."""
    found = [decision for decision in decisions if decision.time <= tick.time + SLACK]
    return found[-1] if found else None


def _between(decisions: list[Decision], first: float, last: float) -> list[Decision]:
    """Those of an episode without seeds: made while it ran, and the one just before it."""
    before = [decision for decision in decisions if decision.time <= first][-1:]
    return before + [decision for decision in decisions if first < decision.time <= last]


def field_of(message: Decision | Tick, name: str | None) -> Any:
    """The field's numbers as a flat list; None where the message does not have it."""
    for entry in message.fields:
        if entry.name == name:
            return np.frombuffer(entry.values, "<f4").tolist()
    return None
