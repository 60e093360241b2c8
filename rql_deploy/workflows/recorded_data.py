"""A server's recording as a transition store: episodes as the control loops reported them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import first_conflict, joined
from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.recording_files import SUFFIX

if TYPE_CHECKING:
    from rql_deploy.runtime.recording.messages import EpisodeEnd, Tick
    from rql_deploy.train.data.store import TransitionStore


class Recorded(NamedTuple):
    """What a recording holds."""

    store: TransitionStore
    remarks: list[str]
    """What is missing in it, one sentence each."""


def read_recorded(name: str) -> Recorded:
    """All episodes, in the order in which they began.

    Where the loop reported no rewards they are success - 1, and masks are 1 - success (docs/algorithm.md,
    Conventions); where it reported no success either, they are 0 and 1. Raises UserError when there is no
    episode in it, or they are of several plants.
    """
    from rql_deploy.runtime.recording.messages import Bundle, Decision, Tick
    from rql_deploy.runtime.recording.reader import read_recording

    episodes: dict[tuple[int, int], _Parts] = {}
    contracts: dict[str, Contract] = {}
    decisions = 0
    for message in read_recording(Path(name)):
        if isinstance(message, Bundle):
            contracts[message.contract_id] = Contract.from_json(message.contract)
        elif isinstance(message, Decision):
            decisions += 1
        else:
            parts = episodes.setdefault((message.epoch, message.episode), _Parts({}))
            # What was sent twice, since its receipt was lost, is kept once.
            if isinstance(message, Tick):
                parts.ticks.setdefault(message.tick, message)
            else:
                parts.end = message
    if not episodes:
        raise UserError(
            f"recording {name} holds {decisions:,} decisions and no episode, which only the control loop "
            "can report: "
            "drive with `rql-deploy run` against a server that records, or report from your own loop "
            "(docs/protocol.md, episode)"
        )
    plants = [contract.plant for contract in contracts.values()]
    if conflict := first_conflict(plants):
        raise UserError(
            f"recording {name} is of several plants ({'; '.join(conflict[2])}): pass its .mcap files one by "
            "one"
        )
    plant = joined(plants)
    # Sorted by the clock of the server, which several workers share.
    ordered = sorted(episodes.values(), key=lambda parts: parts.time)
    found = [_joined(parts, plant) for parts in ordered]
    found = [episode for episode in found if len(episode.actions)]
    if not found:
        raise UserError(f"recording {name} holds only episodes whose beginning is missing: record again")
    return Recorded(_store(name, plant, found), _remarks(found, decisions))


class _Episode(NamedTuple):
    observations: NDArray[np.float32]
    """`[n, O]`"""
    final: NDArray[np.float32] | None
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32] | None
    success: NDArray[np.bool_] | None
    """`[n]`, from the action that reached it to the end."""
    complete: bool
    images: dict[str, NDArray[np.uint8]]
    """By camera `[n, H, W, 3]`: of each tick's stacked frames the newest."""


@dataclass
class _Parts:
    """What there is of an episode."""

    ticks: dict[int, Tick]
    """By number."""
    end: EpisodeEnd | None = None

    @property
    def time(self) -> float:
        """Of its first message."""
        found = [*self.ticks.values(), *([self.end] if self.end else [])]
        return min(message.time for message in found)


def _joined(parts: _Parts, plant: PlantDescription) -> _Episode:
    """An episode's ticks up to the first that is missing."""
    from rql_deploy.runtime.recording.messages import observation

    ticks: list[Tick] = []
    while (tick := parts.ticks.get(len(ticks))) is not None:
        ticks.append(tick)
    complete = parts.end is not None and parts.end.ticks == len(ticks)
    final = parts.end.fields if parts.end is not None and complete else []
    rewards = [tick.reward for tick in ticks if tick.reward is not None]
    flags = [tick.success for tick in ticks if tick.success is not None]
    known = len(ticks) > 0
    seen = [observation(tick) for tick in ticks]
    return _Episode(
        np.stack([_row(one, plant) for one in seen]) if known else np.zeros((0, 0), np.float32),
        _row(observation(parts.end), plant) if final and parts.end is not None else None,
        np.stack([np.frombuffer(tick.action, "<f4") for tick in ticks])
        if known
        else np.zeros((0, 0), np.float32),
        np.array(rewards, np.float32) if known and len(rewards) == len(ticks) else None,
        np.logical_or.accumulate(flags) if known and len(flags) == len(ticks) else None,
        complete,
        {image.name: np.stack([one[image.name][..., -3:] for one in seen]) for image in plant.images * known},
    )


def _row(seen: Mapping[str, NDArray[Any]], plant: PlantDescription) -> NDArray[np.float32]:
    parts = [np.zeros(0, np.float32), *(seen[spec.name].reshape(-1) for spec in plant.fields)]
    return np.concatenate(parts).astype(np.float32)


def _store(name: str, plant: PlantDescription, episodes: list[_Episode]) -> TransitionStore:
    from rql_deploy.train.data.frames import Frames
    from rql_deploy.train.data.store import TransitionStore

    rewards, masks = [], []
    for episode in episodes:
        rows = len(episode.actions)
        reached = (
            np.zeros(rows, np.float32) if episode.success is None else episode.success.astype(np.float32)
        )
        masks.append(1.0 - reached)
        if episode.rewards is not None:
            rewards.append(episode.rewards)
        else:
            rewards.append(np.zeros(rows, np.float32) if episode.success is None else reached - 1.0)
    known = all(episode.success is not None for episode in episodes)
    finals = [episode.final for episode in episodes if episode.final is not None]
    return TransitionStore(
        dataset_id=Path(name).resolve().name.removesuffix(SUFFIX),
        plant=plant,
        observations=np.concatenate([episode.observations for episode in episodes]).astype(np.float32),
        actions=np.concatenate([episode.actions for episode in episodes]).astype(np.float32),
        rewards=np.concatenate(rewards).astype(np.float32),
        masks=np.concatenate(masks).astype(np.float32),
        ends=np.cumsum([len(episode.actions) for episode in episodes]).astype(np.int64),
        successes=np.array(
            [episode.success is not None and bool(episode.success[-1]) for episode in episodes]
        )
        if known
        else None,
        finals=np.stack(finals).astype(np.float32) if len(finals) == len(episodes) else None,
        images={
            image.name: Frames(tuple(episode.images[image.name] for episode in episodes))
            for image in plant.images
        },
    )


def _remarks(episodes: list[_Episode], decisions: int) -> list[str]:
    found = []
    silent = sum(episode.rewards is None and episode.success is None for episode in episodes)
    if silent:
        found.append(
            f"{silent} of {len(episodes)} episodes came without rewards and success, so their rewards are 0 "
            "and their masks 1: "
            "have the loop report success, or use `rql-deploy data relabel`"
        )
    if cut := sum(not episode.complete for episode in episodes):
        found.append(
            f"{cut} of {len(episodes)} episodes are cut short, since a part never arrived or was not written"
        )
    if decisions:
        found.append(
            f"{decisions:,} recorded decisions (seeds, deltas, V, timing) stay behind: `rql-deploy replay` "
            "reads them"
        )
    return found
