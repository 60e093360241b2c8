"""A server's recording as a transition store: episodes as the control loops reported them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rql_deploy.assumptions import first_conflict, joined
from rql_deploy.errors import UserError
from rql_deploy.recording_files import SUFFIX
from rql_deploy.structs import to_plain

from .recorded_episodes import LABELS, Label, RecordedEpisode, read_recorded_episodes

if TYPE_CHECKING:
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
    episodes, decisions = read_recorded_episodes(Path(name))
    if not episodes:
        raise UserError(
            f"recording {name} holds {decisions:,} decisions and no episode from its beginning, which only "
            "the control loop can report: drive with `rql-deploy run` against a server that records, or "
            "report from your own loop (docs/control.md, Your own robot)"
        )
    if conflict := first_conflict([episode.plant for episode in episodes]):
        raise UserError(
            f"recording {name} is of several plants ({'; '.join(conflict[2])}): pass its {SUFFIX} files one "
            "by one"
        )
    store = store_of(Path(name).resolve().name.removesuffix(SUFFIX), episodes)
    return Recorded(store, _remarks(name, episodes, decisions))


def store_of(dataset_id: str, episodes: Sequence[RecordedEpisode]) -> TransitionStore:
    """Episodes of one plant as a data set."""
    from rql_deploy.train.data.frames import Frames
    from rql_deploy.train.data.store import TransitionStore

    plant = joined([episode.plant for episode in episodes])
    finals = [episode.final for episode in episodes if episode.final is not None]
    success = [bool(episode.success[-1]) for episode in episodes if episode.success is not None]
    intervened = np.concatenate([episode.intervened for episode in episodes])
    return TransitionStore(
        dataset_id=dataset_id,
        plant=plant,
        observations=np.concatenate([episode.observations for episode in episodes]),
        actions=np.concatenate([episode.actions for episode in episodes]),
        rewards=np.concatenate([episode.learned_rewards for episode in episodes]).astype(np.float32),
        masks=np.concatenate([episode.masks for episode in episodes]),
        ends=np.cumsum([len(episode.actions) for episode in episodes]).astype(np.int64),
        successes=np.array(success) if len(success) == len(episodes) else None,
        finals=np.stack(finals) if len(finals) == len(episodes) else None,
        intervened=intervened if intervened.any() else None,
        images={
            image.name: Frames(tuple(episode.images[image.name] for episode in episodes))
            for image in plant.images
        },
    )


def label_episodes(recording: Path, episodes: Sequence[str], success: bool) -> int:
    """Say of episodes by name, or `unknown` for all that nothing is known of, whether they succeeded.

    Returns how many were labelled. Raises UserError for a name that the recording does not hold.
    """
    recorded, _ = read_recorded_episodes(recording, on_damage=lambda _: None)
    complete = [episode for episode in recorded if episode.complete]
    names = {episode.name for episode in complete}
    if missing := [name for name in episodes if name not in names and name != "unknown"]:
        few = ", ".join(sorted(names)[:5]) or "none"
        raise UserError(
            f"recording {recording} has no complete episode '{missing[0]}': it has {len(names)} ({few}, ...)"
        )
    chosen = [
        episode.name
        for episode in complete
        if episode.name in episodes or ("unknown" in episodes and not episode.known)
    ]
    file = (recording if recording.is_dir() else recording.parent) / LABELS
    with file.open("a+b") as stream:
        torn = stream.tell() and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n"
        lines = [json.dumps(to_plain(Label(name, success))).encode() + b"\n" for name in chosen]
        stream.write((b"\n" if torn else b"") + b"".join(lines))
        stream.flush()
        os.fsync(stream.fileno())
    return len(chosen)


def _remarks(name: str, episodes: Sequence[RecordedEpisode], decisions: int) -> list[str]:
    found = []
    tasks = list(dict.fromkeys(episode.plant.task for episode in episodes))
    if len(tasks) > 1:
        found.append(
            f"its episodes are of {len(tasks)} tasks ({', '.join(tasks)}), which no row says any more"
        )
    if silent := [episode.name for episode in episodes if not episode.known]:
        few = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
        found.append(
            f"{len(silent)} of {len(episodes)} episodes came without rewards and success ({few}), so their "
            "rewards are 0 and their masks 1: have the loop report success, say it with `rql-deploy data "
            f"label {name} EPISODE --success`, or use `rql-deploy data relabel`"
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
