"""A data set in shards that stream from disk: one is trained on while the next is read in the background.

Which shard an update draws from follows from its number alone (shards in order of their names, round and round), so a resumed run
sees the same data as one that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress

from .normalization import Moments
from .rewards import Reward, with_reward
from .store import TransitionStore

T = TypeVar("T")


class Shard(Protocol):
    """What is known of a shard before its rows are read."""

    @property
    def name(self) -> str: ...

    @property
    def plant(self) -> PlantDescription: ...

    @property
    def rows(self) -> int: ...

    @property
    def episodes(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Changes when the rows do; found without reading them."""
        ...

    def load(self) -> TransitionStore:
        """Read the rows; raises UserError when they are damaged."""
        ...


@dataclass(frozen=True)
class ShardedStore:
    """A data set of which only the shard in use and the next one are in memory."""

    dataset_id: str
    shards: Sequence[Shard]
    shard_updates: int = 1000
    """Updates drawn from one shard before the next takes over."""
    reward: Reward = "as-is"
    """What the rewards of each shard are turned into (rewards.py)."""
    _loaded: WeakValueDictionary[int, TransitionStore] = field(default_factory=WeakValueDictionary, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.shards:
            raise UserError(f"data set {self.dataset_id} has no shards: pass a folder with some")
        if self.shard_updates < 1:
            raise UserError(f"train.shard_updates is {self.shard_updates}, it must be at least 1")
        for shard in self.shards[1:]:
            if differences := self.plant.differences(shard.plant):
                raise UserError(
                    f"data set {self.dataset_id}: shard {shard.name} does not fit {self.shards[0].name} ({'; '.join(differences)}): "
                    "remove it or make it again"
                )

    @property
    def plant(self) -> PlantDescription:
        return self.shards[0].plant

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def episodes(self) -> int:
        return sum(shard.episodes for shard in self.shards)

    @property
    def sample(self) -> TransitionStore:
        """The first shard, which stands for the data in statistics and calibration."""
        return self.load(0)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the shards' fingerprints, so that no row has to be read for it."""
        parts = [shard.fingerprint for shard in self.shards] + ([] if self.reward == "as-is" else [self.reward])
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load(self, index: int) -> TransitionStore:
        """Shard `index`, read and checked unless somebody holds it already. Raises UserError naming row and field."""
        store = self._loaded.get(index)
        if store is None:
            store = with_reward(self.shards[index].load(), self.reward)
            # Looking at every row also brings a memory-mapped file into memory before training asks for it.
            store.validate_rows()
            self._loaded[index] = store
        return store

    def index_at(self, step: int) -> int:
        """The shard that update number `step` (from 0) draws from."""
        return step // self.shard_updates % len(self.shards)

    def validate(self, h: int, *, learn_value: bool = True) -> list[str]:
        """As `TransitionStore.validate`, of the first shard; the others are checked as they are read."""
        first = self.sample
        # Rewards are rare in play data: one shard without any says nothing about the others.
        remarks = first.validate(h, learn_value=False)
        if learn_value and not any(store.rewards_inform() for store in self._each()):
            raise UserError(
                f"the rewards of data set {self.dataset_id} say nothing in any of its {len(self.shards)} shards (the first one's are all "
                f"{first.rewards[0]:g}): relabel them, or clone with --set rql.policy_value_weight=0"
            )
        return remarks

    def observation_scale(
        self, standardise: bool, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `TransitionStore.observation_scale`; reads every shard once when standardised."""
        if not standardise:
            return Moments.identity(self.plant.observation_dim)
        total = Moments.none(self.plant.observation_dim)
        progress = progress or NoProgress()
        progress.start("observation statistics", len(self.shards), "shards")
        for done, store in enumerate(self._each(), 1):
            total = total.joined(store.moments())
            progress.update(done)
        progress.finish(len(self.shards))
        return total.scale()

    def _each(self) -> Iterator[TransitionStore]:
        return (self.load(index) for index in range(len(self.shards)))

    def stream(self, prepare: Callable[[TransitionStore], T]) -> ShardStream[T]:
        """Shards in order, each turned into what `prepare` makes of it, in the background."""
        return ShardStream(self, prepare)


class ShardStream(Generic[T]):
    """The prepared shard that an update draws from; the next one is read by a thread meanwhile.

    Reading and preparing release Python's lock block by block, so that the training thread hardly notices.
    """

    def __init__(self, store: ShardedStore, prepare: Callable[[TransitionStore], T]):
        self.store, self.prepare = store, prepare
        self._index: int | None = None
        self._current: tuple[TransitionStore, T] | None = None
        self._next: tuple[int, Future[tuple[TransitionStore, T]]] | None = None
        self._reader = ThreadPoolExecutor(1, "shard-reader")

    def due(self, step: int) -> bool:
        """Whether update `step` draws from another shard than the current one."""
        return self.store.index_at(step) != self._index

    def at(self, step: int) -> T:
        """What update `step` draws from; waits for it where it is not read yet. Raises UserError when it is damaged."""
        if self.due(step) or self._current is None:
            index = self.store.index_at(step)
            following, self._next = self._next, None
            self._current = following[1].result() if following is not None and following[0] == index else self._load(index)
            self._index = index
            after = (index + 1) % len(self.store.shards)
            if after != index:
                self._next = (after, self._reader.submit(self._load, after))
        return self._current[1]

    def _load(self, index: int) -> tuple[TransitionStore, T]:
        store = self.store.load(index)
        return store, self.prepare(store)
