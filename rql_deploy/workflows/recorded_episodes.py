"""The episodes of a server's recording, one by one: the only place that reads recordings for training.

An episode's name is `EPOCH-NUMBER`: the connection that reported it (in hexadecimal) and its number there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.structs import Record, convert

SUFFIX = ".rqlrec"
LABELS = "labels.jsonl"
"""In a recording's folder: what a person says later; of several words on one episode the last counts."""


class Label(Record, frozen=True):
    """One line: whether an episode succeeded, in its last row."""

    episode: str
    """Its name, EPOCH-NUMBER."""
    success: bool


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One episode of n ticks as a control loop reported it, up to the first part that is missing."""

    name: str
    plant: PlantDescription
    """Of the contract that its first part was reported under."""
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
    where a shard is damaged, unless `on_damage` takes it: then the records before are read, and other shards.
    """
    parts: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    contracts: dict[str, Contract] = {}
    decisions = 0
    for record in _records(recording, on_damage):
        if record["kind"] == "contract":
            contracts[record["contract_id"]] = Contract.from_json(record["contract"])
        elif record["kind"] == "decision":
            decisions += 1
        else:
            # A part whose receipt was lost has been sent twice.
            begun = record["epoch"], record["episode"]
            parts.setdefault(begun, {}).setdefault(record["tick"], record)
    labels = read_labels(recording)
    # Contracts of one plant may list its fields in another order: rows follow the first of them.
    order: dict[frozenset[str], Any] = {}
    plants: dict[str, PlantDescription] = {}
    for key, contract in contracts.items():
        fields = order.setdefault(frozenset(f.name for f in contract.plant.fields), contract.plant.fields)
        plants[key] = msgspec.structs.replace(contract.plant, fields=fields)
    # Sorted by the clock of the server, which several workers share.
    ordered = sorted(parts.items(), key=lambda entry: min(part["time"] for part in entry[1].values()))
    found = []
    for (epoch, number), ticks in ordered:
        if 0 in ticks and (plant := plants.get(ticks[0]["contract_id"])) is not None:
            name = f"{epoch:x}-{number}"
            episode = _joined(name, ticks, plant, labels.get(name))
            found += [episode] if len(episode.actions) else []
    return found, decisions


def read_labels(recording: Path) -> dict[str, bool]:
    """Whether each labelled episode succeeded, by name; a line that a crash cut short is skipped."""
    file = (recording if recording.is_dir() else recording.parent) / LABELS
    found: dict[str, bool] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            label = convert(json.loads(line), Label, LABELS)
        except (ValueError, UserError):
            continue
        found[label.episode] = label.success
    return found


def _records(recording: Path, on_damage: Callable[[UserError], None] | None) -> Iterator[dict[str, Any]]:
    from rql_deploy.runtime.server.recording import read_recording

    if on_damage is None:
        yield from read_recording(recording)
        return
    for shard in sorted(recording.glob(f"*{SUFFIX}")) if recording.is_dir() else [recording]:
        try:
            yield from read_recording(shard)
        except UserError as error:
            on_damage(error)


def _joined(
    name: str, parts: dict[int, dict[str, Any]], plant: PlantDescription, label: bool | None
) -> RecordedEpisode:
    """An episode's parts up to the first that is missing."""
    taken, observed, final, complete = [], [], None, False
    tick = 0
    while (part := parts.get(tick)) is not None:
        n = len(part["actions"])
        seen = np.concatenate([_rows(part["fields"][spec.name]) for spec in plant.fields], axis=1)
        if n:
            taken.append(part)
            observed.append(seen[:n])
        tick += n
        if part["end"]:
            complete, final = True, seen[n] if len(seen) > n else None
            break
        if not n:
            break
    rewards = _column(taken, "rewards")
    flags = _column(taken, "success")
    success = None if flags is None else np.logical_or.accumulate(flags)
    if label is not None and taken:
        rewards, success = None, np.arange(tick) == tick - 1 if label else np.zeros(tick, np.bool_)
    actions = [part["actions"] for part in taken]
    intervened = [_flags(part) for part in taken]
    return RecordedEpisode(
        name,
        plant,
        np.concatenate(observed).astype(np.float32)
        if observed
        else np.zeros((0, plant.observation_dim), np.float32),
        None if final is None else final.astype(np.float32),
        np.concatenate(actions).astype(np.float32)
        if actions
        else np.zeros((0, plant.action_dim), np.float32),
        rewards,
        success,
        np.concatenate(intervened) if intervened else np.zeros(0, np.bool_),
        complete,
    )


def _column(parts: list[dict[str, Any]], name: str) -> NDArray[Any] | None:
    known = [part[name] for part in parts if part[name] is not None]
    return np.concatenate(known) if known and len(known) == len(parts) else None


def _flags(part: dict[str, Any]) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] | None = part.get("intervened")
    return np.zeros(len(part["actions"]), np.bool_) if flags is None else flags


def _rows(column: NDArray[Any]) -> NDArray[Any]:
    # Not -1: numpy cannot tell how wide no rows are.
    return column.reshape(len(column), math.prod(column.shape[1:]))
