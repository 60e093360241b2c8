"""Open data sets of every format, and recordings of a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.cameras import parse_cameras
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress
from rql_deploy.recording_files import is_recording

from .recorded import read_recorded

if TYPE_CHECKING:
    from rql_deploy.train.data.readers.options import ReadOptions
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore


def open_data(
    name: str,
    relabel: str | None = None,
    *,
    may_lack_rewards: bool = False,
    options: ReadOptions | None = None,
) -> TransitionStore | ShardedStore:
    """Open a data set.

    Args:
        relabel: the OGBench task whose rewards replace those of the data.
        may_lack_rewards: give data without rewards, for which no task is named, rewards of 0.
        options: what keys of the file mean, and which language tasks are read.

    Raises UserError where the data cannot be read, or OGBench cannot compute its rewards.
    """
    from rql_deploy.train.data.readers import open_store

    if is_recording(Path(name)):
        if relabel:
            raise _no_states(f"recording {name}", relabel)
        if options is not None and (options.keys or options.tasks or options.cameras):
            raise UserError(
                f"--map, --task-index and --camera are for files of other programs: {name} is a recording"
            )
        return read_recorded(name).store
    rewards: Any = _ZeroRewards(Path(name).name.removesuffix(".npz")) if may_lack_rewards else None
    if relabel:
        from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

        rewards = _CountedRewards(OGBenchRewards(relabel))
    try:
        opened = open_store(name, relabel=rewards, replace=relabel is not None, options=options)
    except UserError as error:
        raise UserError(str(error).replace("--set relabel=", "--relabel ")) from error
    if relabel:
        opened.sample  # noqa: B018  a sharded set computes rewards as its shards are read
        if not rewards.calls:
            raise _no_states(f"data set {opened.dataset_id}", relabel)
    return opened


def _no_states(what: str, relabel: str) -> UserError:
    return UserError(
        f"{what} lacks the simulator's states that the rewards of {relabel} are computed from: name an "
        "OGBench "
        ".npz file with 'qpos', or leave the task out to keep the rewards that are there"
    )


@dataclasses.dataclass
class _CountedRewards:
    """OGBench's rewards, with a count of calls: 0 when the reader had no states to compute them from."""

    rewards: Any
    calls: int = 0

    @property
    def name(self) -> str:
        return str(self.rewards.name)

    def __call__(self, arrays: Any) -> Any:
        self.calls += 1
        return self.rewards(arrays)


@dataclasses.dataclass(frozen=True)
class _ZeroRewards:
    """Rewards of 0 and masks of 1, for a file without rewards."""

    name: str

    def __call__(self, arrays: Any) -> Any:
        import numpy as np

        rows = len(next(iter(arrays.values())))
        return np.zeros(rows, np.float32), np.ones(rows, np.float32)


def require_unsharded(opened: TransitionStore | ShardedStore) -> TransitionStore:
    """The data set; raises UserError where it is in shards."""
    from rql_deploy.train.data.store import TransitionStore

    if not isinstance(opened, TransitionStore):
        raise UserError(
            f"data set {opened.dataset_id} is in shards: pass its files one by one, or convert it to stores "
            "first"
        )
    return opened


def parse_read_options(
    mapping: Sequence[str],
    tasks: Sequence[int],
    cameras: Sequence[str] = (),
    progress: Progress | None = None,
) -> ReadOptions:
    """From the words of `--map`, `--task-index` and `--camera`; raises UserError for words that say nothing.

    `progress` follows the decoding of frames.
    """
    from rql_deploy.train.data.readers.options import KeyMap, ReadOptions

    return ReadOptions(KeyMap.parse(mapping), tuple(tasks), parse_cameras(cameras), progress or NoProgress())


def language_tasks(name: str) -> list[dict[str, Any]]:
    """Number, text, episodes and rows of the language tasks of a LeRobotDataset; of others none."""
    from rql_deploy.train.data.readers.lerobot import is_lerobot
    from rql_deploy.train.data.readers.lerobot_episodes import language_tasks

    return language_tasks(Path(name)) if is_lerobot(Path(name)) else []


def unread_columns(names: Sequence[str], options: ReadOptions | None = None) -> list[str]:
    """Arrays of these data sets that training does not read, sorted."""
    from rql_deploy.train.data.readers.unread_columns import unread_columns

    return sorted(
        {key for name in names if not is_recording(Path(name)) for key in unread_columns(name, options)}
    )


def recording_remarks(names: Sequence[str]) -> list[str]:
    """What is missing in those of the data sets that are recordings, one sentence each."""
    several = len(names) > 1
    return [
        f"{name}: {sentence}" if several else sentence
        for name in names
        if is_recording(Path(name))
        for sentence in read_recorded(name).remarks
    ]


def lost_by_merge(stores: Sequence[TransitionStore]) -> list[str]:
    """What only some of the data sets know, so that the merged one does not, one sentence each."""
    found = []
    for attribute, what in (
        ("successes", "which episodes succeeded"),
        ("finals", "the observation after each episode's last action"),
    ):
        lacking = [store.dataset_id for store in stores if getattr(store, attribute) is None]
        if 0 < len(lacking) < len(stores):
            found.append(f"{what} is not kept, since {', '.join(lacking)} does not say")
    return found
