"""What `rql-deploy data` reads: data sets of every format, and recordings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.workflows.recorded_data import is_recording, read_recorded

if TYPE_CHECKING:
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore


def open_data(
    name: str, relabel: str | None = None, *, may_lack_rewards: bool = False
) -> TransitionStore | ShardedStore:
    """A data set; `relabel` names the OGBench task whose rewards it gets, whatever it had before.

    Where it has none and none is named, rewards are 0 if it `may_lack_rewards`. Raises UserError where OGBench cannot compute them.
    """
    from rql_deploy.train.data.readers import open_store

    if is_recording(name):
        if relabel:
            raise _no_states(f"recording {name}", relabel)
        return read_recorded(name).store
    rewards: Any = _NoRewards(Path(name).name.removesuffix(".npz")) if may_lack_rewards else None
    if relabel:
        from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

        rewards = _Used(OGBenchRewards(relabel))
    try:
        opened = open_store(name, relabel=rewards, replace=relabel is not None)
    except UserError as error:
        raise UserError(str(error).replace("--set relabel=", "--relabel ")) from error
    if relabel:
        opened.sample  # noqa: B018  a sharded set computes them as its shards are read
        if not rewards.calls:
            raise _no_states(f"data set {opened.dataset_id}", relabel)
    return opened


def _no_states(what: str, relabel: str) -> UserError:
    return UserError(
        f"{what} lacks the simulator's states that the rewards of {relabel} are computed from: name an OGBench .npz file with 'qpos', "
        "or leave the task out to keep the rewards that are there"
    )


@dataclasses.dataclass
class _Used:
    """OGBench's rewards, and whether anybody asked for them."""

    rewards: Any
    calls: int = 0

    @property
    def name(self) -> str:
        return str(self.rewards.name)

    def __call__(self, arrays: Any) -> Any:
        self.calls += 1
        return self.rewards(arrays)


@dataclasses.dataclass(frozen=True)
class _NoRewards:
    """Stands in where a file has no rewards: all 0."""

    name: str

    def __call__(self, arrays: Any) -> Any:
        import numpy as np

        rows = len(next(iter(arrays.values())))
        return np.zeros(rows, np.float32), np.ones(rows, np.float32)


def whole(opened: TransitionStore | ShardedStore) -> TransitionStore:
    """A data set that is not sharded; raises UserError for one that is."""
    from rql_deploy.train.data.store import TransitionStore

    if not isinstance(opened, TransitionStore):
        raise UserError(
            f"data set {opened.dataset_id} is in shards: pass its files one by one, or convert it to stores first"
        )
    return opened


def left_out_of(*names: str) -> list[str]:
    """Arrays of these data sets that training does not read, sorted."""
    from rql_deploy.train.data.readers.unread_columns import left_out

    return sorted({key for name in names if not is_recording(name) for key in left_out(name)})


def remarks_of(*names: str) -> list[str]:
    """What is missing in those of them that are recordings, one sentence each."""
    several = len(names) > 1
    return [
        f"{name}: {sentence}" if several else sentence
        for name in names
        if is_recording(name)
        for sentence in read_recorded(name).remarks
    ]


def unlike(stores: list[TransitionStore]) -> list[str]:
    """What some of the data sets to be joined know and others do not, so that the result does not, one sentence each."""
    found = []
    for attribute, what in (
        ("successes", "which episodes succeeded"),
        ("finals", "the observation after each episode's last action"),
    ):
        lacking = [store.dataset_id for store in stores if getattr(store, attribute) is None]
        if 0 < len(lacking) < len(stores):
            found.append(f"{what} is not kept, since {', '.join(lacking)} does not say")
    return found
