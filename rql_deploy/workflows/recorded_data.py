"""A server's recording as a transition store: episodes as the control loops reported them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import first_conflict, joined
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.train.data.store import TransitionStore

SUFFIX = ".rqlrec"


class Recorded(NamedTuple):
    """What a recording holds."""

    store: TransitionStore
    remarks: list[str]
    """What is missing in it, one sentence each."""


def is_recording(name: str) -> bool:
    """Whether this is a shard of `serve --record`, or a folder of them."""
    path = Path(name)
    return path.suffix == SUFFIX or (path.is_dir() and next(path.glob(f"*{SUFFIX}"), None) is not None)


def read_recorded(name: str) -> Recorded:
    """All episodes, in the order in which they began.

    Where the loop reported no rewards they are success - 1, and masks are 1 - success (docs/algorithm.md,
    Conventions); where it reported no success either, they are 0 and 1. Raises UserError when there is no
    episode in it, or they are of several plants.
    """
    from rql_deploy.runtime.server.recording import read_recording

    episodes: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    contracts: dict[str, Contract] = {}
    decisions = 0
    for record in read_recording(Path(name)):
        if record["kind"] == "contract":
            contracts[record["contract_id"]] = Contract.from_json(record["contract"])
        elif record["kind"] == "decision":
            decisions += 1
        else:
            # A part whose receipt was lost has been sent twice.
            episodes.setdefault((record["epoch"], record["episode"]), {}).setdefault(record["tick"], record)
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
            f"recording {name} is of several plants ({'; '.join(conflict[2])}): pass its shards "
            f"({SUFFIX}) one by one"
        )
    plant = joined(plants)
    # Sorted by the clock of the server, which several workers share.
    ordered = sorted(episodes.values(), key=lambda parts: min(part["time"] for part in parts.values()))
    found = [
        episode
        for episode in (_joined(parts, [spec.name for spec in plant.fields]) for parts in ordered)
        if len(episode.actions)
    ]
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


def _joined(parts: dict[int, dict[str, Any]], fields: list[str]) -> _Episode:
    """An episode's parts up to the first that is missing."""
    rows, final, complete = [], None, False
    tick = 0
    while (part := parts.get(tick)) is not None:
        n = len(part["actions"])
        seen = np.concatenate([_rows(part["fields"][name]) for name in fields], axis=1)
        rows.append((seen[:n], part["actions"], part["rewards"], part["success"]))
        tick += n
        if part["end"]:
            complete, final = True, seen[n] if len(seen) > n else None
            break
        if not n:
            break
    observations, actions = (
        (np.concatenate(column) for column in zip(*[row[:2] for row in rows], strict=True))
        if rows
        else _NOTHING
    )
    known = [row for row in rows if len(row[1])]
    rewards = [row[2] for row in known if row[2] is not None]
    flags = [row[3] for row in known if row[3] is not None]
    success = np.logical_or.accumulate(np.concatenate(flags)) if flags and len(flags) == len(known) else None
    return _Episode(
        observations,
        final,
        actions,
        np.concatenate(rewards) if rewards and len(rewards) == len(known) else None,
        success,
        complete,
    )


def _rows(column: NDArray[Any]) -> NDArray[Any]:
    # Not -1: numpy cannot tell how wide no rows are.
    return column.reshape(len(column), math.prod(column.shape[1:]))


_NOTHING = (np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))


def _store(name: str, plant: Any, episodes: list[_Episode]) -> TransitionStore:
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
