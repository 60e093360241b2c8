"""Which recorded episodes a new generation can learn from, and what it learns from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rql_deploy.assumptions import replacement_conflicts

from ..data.recorded import store_of
from ..data.recorded_episodes import RecordedEpisode, read_recorded_episodes

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.train.data.store import TransitionStore

EPISODES, HELD_OUT = "episodes", "held_out"
"""A generation's store folders: what is learned from, and what is kept to compare with."""
NO_LABELS: Mapping[str, bool] = {}
HELD_OUT_ONE_OF = 10
"""Without a simulator, one of so many episodes is kept to compare with."""


@dataclass(frozen=True)
class Watched:
    """What a recording holds for the next generation."""

    usable: tuple[RecordedEpisode, ...]
    """Complete episodes of the served plant of which something says how well they went."""
    remarks: tuple[str, ...]
    """Why others are left out, one sentence each."""

    def names(self) -> set[str]:
        """Of the usable episodes."""
        return {episode.name for episode in self.usable}


def marks_of(recording: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of its files, by which one sees that it has changed; a file that goes is none."""
    found = []
    for path in recording.iterdir() if recording.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            found.append((path.name, state.st_size, state.st_mtime_ns))
    return sorted(found)


def watch(recording: Path, plant: PlantDescription) -> Watched:
    """Read a recording that a server may be writing at this moment.

    What is half written, damaged, of another plant or without rewards and success is left out and said.
    """
    remarks: list[str] = []
    if not recording.is_dir() or not any(recording.iterdir()):
        return Watched((), (f"nothing is recorded in {recording} yet",))
    episodes, _ = read_recorded_episodes(recording, on_damage=lambda error: remarks.append(str(error)))
    usable: list[RecordedEpisode] = []
    foreign: dict[str, int] = {}
    silent: list[str] = []
    unfinished = 0
    for episode in episodes:
        if differences := replacement_conflicts(plant, episode.plant):
            text = "; ".join(differences)
            foreign[text] = foreign.get(text, 0) + 1
        elif not _finite(episode):
            remarks.append(f"recorded episode {episode.name} has NaN or infinity: left out")
        elif not episode.complete:
            unfinished += 1
        elif not episode.known:
            silent.append(episode.name)
        else:
            usable.append(episode)
    if unfinished:
        remarks.append(f"{unfinished} recorded episodes have no end yet")
    for text, count in foreign.items():
        remarks.append(
            f"{count} recorded episodes are of another plant than the served one ({text}): left out"
        )
    if silent:
        few = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
        remarks.append(
            f"{len(silent)} recorded episodes wait for a word on whether they succeeded ({few}): `rql-deploy "
            f"data label {recording} EPISODE --success`"
        )
    return Watched(tuple(usable), tuple(remarks))


def is_held_out(name: str) -> bool:
    """Whether an episode is kept to compare with; its name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_OF == 0


def write_episodes(
    folder: Path,
    earlier: Path,
    episodes: Sequence[RecordedEpisode],
    plant: PlantDescription,
    names: Sequence[str] = (),
    labels: Mapping[str, bool] = NO_LABELS,
) -> None:
    """Write the episodes of an earlier store folder, if it is there, and new ones after them.

    `names` are the earlier ones'; what `labels` say of them may have been said since. Actions are kept within
    the plant's bounds. Writes nothing where there are none.
    """
    from rql_deploy.train.data.edits import concatenate
    from rql_deploy.train.data.folder import is_store, read_store, write_store

    stores = [_labelled(read_store(earlier), names, labels)] if is_store(earlier) else []
    if episodes:
        store = store_of("recorded", episodes)
        low, high = plant.action_low.astype(np.float32), plant.action_high.astype(np.float32)
        actions = np.clip(store.actions, low, high)
        stores.append(dataclasses.replace(store, plant=plant, actions=actions))
    if stores:
        write_store(dataclasses.replace(concatenate(stores), dataset_id="recorded"), folder)


def _labelled(store: TransitionStore, names: Sequence[str], labels: Mapping[str, bool]) -> TransitionStore:
    """The episodes, with success in the last rows of those that a person says succeeded, and only there."""
    rewards, masks = store.rewards.copy(), store.masks.copy()
    successes = None if store.successes is None else store.successes.copy()
    for i, name in enumerate(names):
        if name in labels:
            first, last = store.starts[i], store.ends[i] - 1
            rewards[first:last], masks[first:last] = -1.0, 1.0
            rewards[last], masks[last] = float(labels[name]) - 1.0, 1.0 - float(labels[name])
            if successes is not None:
                successes[i] = labels[name]
    return dataclasses.replace(store, rewards=rewards, masks=masks, successes=successes)


def split_held_out(
    new: Sequence[RecordedEpisode], kept_before: int
) -> tuple[list[RecordedEpisode], list[RecordedEpisode]]:
    """Episodes to learn from, and those to compare with: with `kept_before` others at least two.

    An episode's name alone decides, where there are enough.
    """
    names = {episode.name for episode in new if is_held_out(episode.name)}
    for episode in reversed(new):
        if kept_before + len(names) < 2:
            names.add(episode.name)
    if len(names) == len(new):
        names.discard(new[0].name)
    learned = [episode for episode in new if episode.name not in names]
    return learned, [episode for episode in new if episode.name in names]


def _finite(episode: RecordedEpisode) -> bool:
    arrays = (episode.observations, episode.actions, episode.learned_rewards)
    return all(bool(np.isfinite(array).all()) for array in arrays)
