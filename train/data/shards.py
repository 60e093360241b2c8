"""A data set in shards that are streamed from disk: training uses one while a thread reads the next.

The number of an update alone decides its shard (in order of their names, starting over after the last), so a
resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import first_conflict, joined
from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress

from .normalization import RunningMeanStd, no_normalization
from .rewards import Reward, with_reward
from .store import TransitionStore

T = TypeVar("T")


class Shard(Protocol):
    """A shard whose rows may not have been read yet."""

    @property
    def name(self) -> str: ...

    @property
    def plant(self) -> PlantDescription:
        """What the rows describe."""
        ...

    @property
    def rows(self) -> int:
        """Rows of all its episodes."""
        ...

    @property
    def episodes(self) -> int:
        """How many episodes it has."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs whenever the rows differ; computed without reading them."""
        ...

    def load(self) -> TransitionStore:
        """Read the rows; raises UserError when they are damaged."""
        ...


@dataclass(frozen=True)
class ShardedStore:
    """A data set in shards; at most two are in memory: the one in use and the next."""

    dataset_id: str
    shards: Sequence[Shard]
    shard_updates: int = 1000
    """Updates that draw from one shard before the next is used."""
    reward: Reward = "as-is"
    """See `rewards.with_reward`."""
    stated: PlantDescription | None = None
    """Describes the rows in place of the shards' own descriptions."""
    _loaded: WeakValueDictionary[int, TransitionStore] = field(
        default_factory=WeakValueDictionary, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.shards:
            raise UserError(f"data set {self.dataset_id} has no shards: pass a folder that holds some")
        if self.shard_updates < 1:
            raise UserError(f"train.shard_updates is {self.shard_updates}, it must be at least 1")
        if conflict := first_conflict([shard.plant for shard in self.shards]):
            earlier, later, differences = conflict
            raise UserError(
                f"data set {self.dataset_id}: shard {self.shards[later].name} does not fit "
                f"{self.shards[earlier].name} ({'; '.join(differences)}): remove it or make it again"
            )

    @cached_property
    def plant(self) -> PlantDescription:
        """What was stated of all rows, else what fits every shard: assumed bounds hold all of them."""
        return self.stated or joined([shard.plant for shard in self.shards])

    def action_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Like `TransitionStore.action_range`; reads every shard."""
        ranges = [store.action_range() for store in self._each()]
        return np.min([low for low, _ in ranges], axis=0), np.max([high for _, high in ranges], axis=0)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def episodes(self) -> int:
        return sum(shard.episodes for shard in self.shards)

    @property
    def sample(self) -> TransitionStore:
        """The first shard; statistics and calibration are computed from it."""
        return self.load(0)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the shards' fingerprints; reads no rows."""
        parts = [shard.fingerprint for shard in self.shards] + (
            [] if self.reward == "as-is" else [self.reward]
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load(self, index: int) -> TransitionStore:
        """Shard `index`, read and checked unless it is in memory already.

        Raises UserError naming row and field.
        """
        store = self._loaded.get(index)
        if store is None:
            store = with_reward(with_plant(self.shards[index].load(), self.plant), self.reward)
            # Checking every row also reads a memory-mapped file into memory before training needs it.
            store.validate_rows()
            self._loaded[index] = store
        return store

    def index_at(self, step: int) -> int:
        """Index of the shard that update `step` (from 0) draws from."""
        return step // self.shard_updates % len(self.shards)

    def validate(self, h: int, *, learn_value: bool = True) -> list[str]:
        """Like `TransitionStore.validate`, for the first shard; the others are checked when they are read."""
        first = self.sample
        # Rewards are rare in play data: one shard may have none although others do.
        warnings = first.validate(h, learn_value=False)
        if learn_value and not any(store.has_informative_rewards() for store in self._each()):
            raise UserError(
                f"the rewards of data set {self.dataset_id} are uninformative in all of its "
                f"{len(self.shards)} shards (the first one's are all {first.rewards[0]:g}): relabel them, or "
                "train plain behaviour cloning with --set rql.policy_value_weight=0"
            )
        return warnings

    def normalization(
        self, standardise: bool, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Like `TransitionStore.normalization`; reads every shard once if `standardise`."""
        if not standardise:
            return no_normalization(self.plant.observation_dim)
        total = RunningMeanStd.empty(self.plant.observation_dim)
        progress = progress or NoProgress()
        progress.start("observation statistics", len(self.shards), "shards")
        for done, store in enumerate(self._each(), 1):
            total = total.merged(store.running_mean_std())
            progress.update(done)
        progress.finish(len(self.shards))
        return total.mean_std()

    def _each(self) -> Iterator[TransitionStore]:
        return (self.load(index) for index in range(len(self.shards)))

    def stream(self, prepare: Callable[[TransitionStore], T]) -> ShardStream[T]:
        """The shards in order; a thread reads each and calls `prepare` on it."""
        return ShardStream(self, prepare)


Store = TypeVar("Store", bound="TransitionStore | ShardedStore")


def with_plant(store: Store, plant: PlantDescription) -> Store:
    """The same rows, described by `plant`, which may lack some of their fields and cameras or rename them."""
    if store.plant == plant:
        return store
    changes: dict[str, Any] = {"plant": plant}
    if isinstance(store, ShardedStore):
        changes = {"stated": plant, "_loaded": WeakValueDictionary()}
    else:
        changes["images"] = {image.name: store.images[image.name] for image in plant.images}
        names, stored = ([field.name for field in one.fields] for one in (plant, store.plant))
        if names != stored and set(names) <= set(stored):
            columns = store.plant.columns(names)
            changes["observations"] = store.observations[:, columns]
            changes["finals"] = None if store.finals is None else store.finals[:, columns]
    return replace(store, **changes)


def with_frame_stack(store: Store, count: int) -> Store:
    """The same rows for networks that see `count` frames at once; 0 leaves that as it is."""
    if not count or not store.plant.images:
        return store
    return with_plant(store, msgspec.structs.replace(store.plant, frame_stack=count))


def with_settings(
    store: TransitionStore | ShardedStore, reward: Reward, shard_updates: int
) -> TransitionStore | ShardedStore:
    """The data set with a training run's kind of rewards and, in shards, its updates per shard.

    Raises UserError where the rewards cannot be of that kind.
    """
    if isinstance(store, TransitionStore):
        return with_reward(store, reward)
    changes: dict[str, Any] = {"_loaded": WeakValueDictionary()}
    return replace(store, reward=reward, shard_updates=shard_updates, **changes)


class ShardStream(Generic[T]):
    """The prepared shard that an update draws from; a thread reads and prepares the next one.

    Reading and preparing release the GIL block by block, so that training is hardly slowed down.
    """

    def __init__(self, store: ShardedStore, prepare: Callable[[TransitionStore], T]):
        self.store, self.prepare = store, prepare
        self._index: int | None = None
        self._current: tuple[TransitionStore, T] | None = None
        self._next: tuple[int, Future[tuple[TransitionStore, T]]] | None = None
        self._reader = ThreadPoolExecutor(1, "shard-reader")

    def due(self, step: int) -> bool:
        """Whether update `step` needs another shard than the current one."""
        return self.store.index_at(step) != self._index

    def at(self, step: int) -> T:
        """The shard that update `step` draws from; waits until it has been read.

        Raises UserError if it is damaged.
        """
        if self.due(step) or self._current is None:
            index = self.store.index_at(step)
            following, self._next = self._next, None
            self._current = (
                following[1].result()
                if following is not None and following[0] == index
                else self._load(index)
            )
            self._index = index
            after = (index + 1) % len(self.store.shards)
            if after != index:
                self._next = (after, self._reader.submit(self._load, after))
        return self._current[1]

    def _load(self, index: int) -> tuple[TransitionStore, T]:
        store = self.store.load(index)
        return store, self.prepare(store)
