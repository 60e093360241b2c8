"""The episodes of a server's recording, one by one: the only place that reads recordings for training.

An episode's name is `EPOCH-NUMBER`: the connection that reported it (in hexadecimal) and its number there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.recording_files import recording_files
from rql_deploy.structs import Record, convert

if TYPE_CHECKING:
    from rql_deploy.runtime.recording.messages import EpisodeEnd, Message, Tick

LABELS = "labels.jsonl"
"""In a recording's folder: what a person says later; of several words on one episode the last counts."""


class Label(Record, frozen=True):
    """One line: whether an episode succeeded, in its last row."""

    episode: str
    """Its name, EPOCH-NUMBER."""
    success: bool


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One episode of n ticks as a control loop reported it, up to the first tick that is missing."""

    name: str
    plant: PlantDescription
    """Of the contract that its first tick was reported under."""
    observations: NDArray[np.float32]
    """`[n, O]`"""
    final: NDArray[np.float32] | None
    actions: NDArray[np.float32]
    """`[n, A]`, as carried out."""
    rewards: NDArray[np.float32] | None
    """`[n]`; None where the loop reported none, or a label says whether the episode succeeded."""
    success: NDArray[np.bool_] | None
    """`[n]`, from the action that reached it to the end."""
    intervened: NDArray[np.bool_]
    """`[n]`: whether the action was not the policy's."""
    complete: bool
    """Whether its end has arrived."""
    images: Mapping[str, NDArray[np.uint8]]
    """By camera `[n, H, W, 3]`: of each tick's stacked frames the newest."""

    @property
    def known(self) -> bool:
        """Whether anything says how well it went."""
        return self.rewards is not None or self.success is not None

    @property
    def learned_rewards(self) -> NDArray[np.float32]:
        """Its rewards; without any, success - 1, and where nothing is known 0 (docs/algorithm.md)."""
        if self.rewards is not None:
            return self.rewards
        if self.success is None:
            return np.zeros(len(self.actions), np.float32)
        return self.success.astype(np.float32) - 1.0

    @property
    def masks(self) -> NDArray[np.float32]:
        """`[n]`: 1 - success; 1 where nothing is known."""
        if self.success is None:
            return np.ones(len(self.actions), np.float32)
        return 1.0 - self.success.astype(np.float32)


def read_recorded_episodes(
    recording: Path, *, on_damage: Callable[[UserError], None] | None = None
) -> tuple[list[RecordedEpisode], int]:
    """The episodes that have ticks, in the order in which they began, and the number of recorded decisions.

    A person's labels (`rql-deploy data label`) replace what the loop reported of success. Raises UserError
    where a file is damaged, unless `on_damage` takes it: then what is before is read, and the other files.
    """
    from rql_deploy.runtime.recording.messages import Bundle, Decision, Tick

    parts: dict[tuple[int, int], _Parts] = {}
    contracts: dict[str, Contract] = {}
    decisions = 0
    for message in _messages(recording, on_damage):
        if isinstance(message, Bundle):
            contracts[message.contract_id] = Contract.from_json(message.contract)
        elif isinstance(message, Decision):
            decisions += 1
        else:
            found_so_far = parts.setdefault((message.epoch, message.episode), _Parts({}))
            # A part whose receipt was lost has been sent twice.
            if isinstance(message, Tick):
                found_so_far.ticks.setdefault(message.tick, message)
            else:
                found_so_far.end = message
    labels = read_labels(recording)
    # Contracts of one plant may list its fields in another order: rows follow the first of them.
    order: dict[frozenset[str], Any] = {}
    plants: dict[str, PlantDescription] = {}
    for key, contract in contracts.items():
        fields = order.setdefault(frozenset(f.name for f in contract.plant.fields), contract.plant.fields)
        plants[key] = msgspec.structs.replace(contract.plant, fields=fields)
    found = []
    for (epoch, number), told in _in_order(parts):
        name = f"{epoch:x}-{number}"
        try:
            found.append(_joined(name, told, plants[told.ticks[0].contract_id], labels.get(name)))
        except (LookupError, ValueError) as error:
            damage = UserError(
                f"recording {recording} lacks the contract of episode {name}, or what the contract says",
                hint="use a whole copy",
            )
            if on_damage is None:
                raise damage from error
            on_damage(damage)
    return found, decisions


def read_labels(recording: Path) -> dict[str, bool]:
    """Whether each labelled episode succeeded, by name; a line that a crash cut short is skipped."""
    file = (recording if recording.is_dir() else recording.parent) / LABELS
    found: dict[str, bool] = {}
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        try:
            label = convert(json.loads(line), Label, LABELS)
        except (ValueError, UserError):
            continue
        found[label.episode] = label.success
    return found


@dataclass
class _Parts:
    """What there is of an episode."""

    ticks: dict[int, Tick]
    """By number."""
    end: EpisodeEnd | None = None


def _in_order(parts: dict[tuple[int, int], _Parts]) -> list[tuple[tuple[int, int], _Parts]]:
    """Episodes with a first tick, by the clock of the server, which several workers share.

    Those of one connection by their number: how long its messages took differs by more than short episodes.
    """
    latest: dict[int, float] = {}
    began: dict[tuple[int, int], float] = {}
    for (epoch, number), told in sorted(parts.items(), key=lambda entry: entry[0]):
        if 0 in told.ticks:
            latest[epoch] = max(told.ticks[0].time, latest.get(epoch, 0.0))
            began[epoch, number] = latest[epoch]
    return [(key, parts[key]) for key in sorted(began, key=lambda key: (began[key], key))]


def _messages(recording: Path, on_damage: Callable[[UserError], None] | None) -> Iterator[Message]:
    from rql_deploy.runtime.recording.reader import read_file, read_recording

    if on_damage is None:
        yield from read_recording(recording)
        return
    try:
        files = recording_files(recording)
    except UserError as error:
        on_damage(error)
        return
    for file in files:
        try:
            yield from read_file(file)
        except UserError as error:
            on_damage(error)


def _joined(name: str, parts: _Parts, plant: PlantDescription, label: bool | None) -> RecordedEpisode:
    """An episode's ticks up to the first that is missing."""
    from rql_deploy.runtime.recording.messages import observation

    ticks: list[Tick] = []
    while (tick := parts.ticks.get(len(ticks))) is not None:
        ticks.append(tick)
    end = parts.end if parts.end is not None and parts.end.ticks == len(ticks) else None
    rewards = [tick.reward for tick in ticks if tick.reward is not None]
    flags = [tick.success for tick in ticks if tick.success is not None]
    success = np.logical_or.accumulate(flags) if len(flags) == len(ticks) else None
    known = len(rewards) == len(ticks)
    if label is not None:
        known, success = (
            False,
            np.arange(len(ticks)) == len(ticks) - 1 if label else np.zeros(len(ticks), bool),
        )
    seen = [observation(tick) for tick in ticks]
    return RecordedEpisode(
        name,
        plant,
        np.stack([_row(one, plant) for one in seen]),
        _row(observation(end), plant) if end is not None and end.fields else None,
        np.stack([np.frombuffer(tick.action, "<f4") for tick in ticks]),
        np.array(rewards, np.float32) if known else None,
        success,
        np.array([bool(tick.intervened) for tick in ticks]),
        end is not None,
        {image.name: np.stack([one[image.name][..., -3:] for one in seen]) for image in plant.images},
    )


def _row(seen: Mapping[str, NDArray[Any]], plant: PlantDescription) -> NDArray[np.float32]:
    parts = [np.zeros(0, np.float32), *(seen[spec.name].reshape(-1) for spec in plant.fields)]
    row: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return row
