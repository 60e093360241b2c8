"""The transition store: flat arrays of rows in episode order, the one form that training reads data in.

The arrays may be memory-mapped files (store_folder.py), so nothing here copies a whole one: checks, statistics and hashes go through
them in blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.progress import Progress

from .normalization import Moments

ACTION_MARGIN = 1e-5
"""Scaled data set actions are kept this far inside [-1, 1], as in the reference (docs/algorithm.md, Batch)."""
ASSUMED_RATE = "control rate assumed"
"""Entry in a plant's `environment` where the data did not say the rate."""
BLOCK_ROWS = 65_536
"""Rows looked at in one go."""


@dataclass(frozen=True)
class TransitionStore:
    """N rows of E episodes, in order.

    Row i holds the observation, the action taken there, the reward it brought and whether the task went on (`mask` 1) or had ended.
    """

    dataset_id: str
    plant: PlantDescription
    observations: NDArray[np.float32]
    """`[N, O]`, in the plant's units, fields in the description's order."""
    actions: NDArray[np.float32]
    """`[N, A]`, in the plant's units."""
    rewards: NDArray[np.float32]
    """`[N]`"""
    masks: NDArray[np.float32]
    """`[N]`: 0 where the task had ended, so nothing is bootstrapped beyond."""
    ends: NDArray[np.int64]
    """`[E]`: one past each episode's last row."""
    successes: NDArray[np.bool_] | None = None
    """`[E]`: whether each episode succeeded, where the data says."""
    finals: NDArray[np.float32] | None = None
    """`[E, O]`: the observation after each episode's last action, where the data has it; kept for other formats, not learned from."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        return len(self.ends)

    @property
    def sample(self) -> TransitionStore:
        """Rows that stand for the data where all of it would be too much: here the store itself, of a sharded set its first shard."""
        return self

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """`[E]`: each episode's first row."""
        return np.concatenate((np.zeros(1, np.int64), self.ends[:-1]))

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the rows themselves, independent of the file format."""
        digest = hashlib.sha256()
        for array in (self.observations, self.actions, self.rewards, self.masks, self.ends):
            digest.update(f"{array.dtype}{array.shape}".encode())
            for block in _blocks(array):
                digest.update(np.ascontiguousarray(block).data)
        return digest.hexdigest()

    def locate(self, row: int) -> str:
        """'episode 3, row 17' for a row number, for messages."""
        episode = int(np.searchsorted(self.ends, row, side="right"))
        return f"episode {episode}, row {row - int(self.starts[episode])}"

    def validate(self, h: int, *, learn_value: bool = True) -> list[str]:
        """Refuse data that cannot be learned from: raises UserError naming row and field.

        Returns remarks on data that can be used but deserves a look, one sentence each. With `learn_value` off (pure behaviour
        cloning) rewards that say nothing are accepted.
        """
        self.validate_rows()
        if learn_value and not self.rewards_inform():
            raise UserError(self._uninformative())
        longest = int((self.ends - self.starts).max())
        if longest <= h:
            raise UserError(
                f"every episode of {self.dataset_id} has at most {longest} rows, but a window needs h+1 = {h + 1}: "
                "use a smaller h or longer episodes"
            )
        return self.remarks(h)

    def validate_rows(self) -> None:
        """Raise UserError unless shapes agree, episodes are not empty, and every number is finite."""
        if not len(self):
            raise UserError(f"data set {self.dataset_id} is empty: collect some episodes first")
        self.validate_shapes()
        start = 0
        for spec in self.plant.fields:
            self._refuse_not_finite(self.observations[:, start : start + spec.size], f"observation field '{spec.name}'")
            start += spec.size
        self._refuse_not_finite(self.actions, "actions")
        self._refuse_not_finite(self.rewards[:, None], "rewards")
        self._refuse_not_finite(self.masks[:, None], "masks")

    def rewards_inform(self) -> bool:
        """Whether any two behaviours can differ in return.

        They cannot when every reward is 0, or when every reward and every mask is the same. Equal rewards other than 0 still tell
        something where the task ends in some rows: how soon.
        """
        reward = self.rewards[0]
        if any((block != reward).any() for block in _blocks(self.rewards)):
            return True
        return bool(reward != 0) and any((block != self.masks[0]).any() for block in _blocks(self.masks))

    def assumptions(self) -> Iterator[str]:
        """What a reader had to assume about the plant, one sentence each."""
        if ASSUMED_RATE in self.plant.environment:
            yield (
                f"{self.dataset_id} does not say its control rate: {self.plant.control_rate:g} Hz is assumed, and goes into the policy's "
                "contract; `rql-deploy data convert --control-rate HZ` puts the right one in"
            )

    def remarks(self, h: int) -> list[str]:
        """What deserves a look before training, one sentence each."""
        lengths = self.ends - self.starts
        found = list(self.assumptions())
        if short := int((lengths <= h).sum()):
            found.append(
                f"{short} of {self.episodes} episodes of {self.dataset_id} have at most h = {h} rows: their windows repeat the last row; "
                "those that end early count in the cloning of the rows that are there, and not in the value terms"
            )
        if single := int((lengths == 1).sum()):
            found.append(
                f"{single} of {self.episodes} episodes of {self.dataset_id} have one row and are never drawn: "
                "--set rql.complete_rows=true draws them"
            )
        return found

    def _uninformative(self) -> str:
        ended = "" if (self.masks[0] == 1).all() else f" and every mask {self.masks[0]:g}"
        return (
            f"every reward of data set {self.dataset_id} is {self.rewards[0]:g}{ended}, first to last row, so V has nothing to tell apart: "
            "add episodes with another outcome or relabel the rewards, or clone with --set rql.policy_value_weight=0"
        )

    def validate_shapes(self) -> None:
        """Raise UserError unless the arrays' shapes agree with each other and the plant, and no episode is empty. Reads no row."""
        self._validate_plant()
        rows = len(self.rewards) if self.rewards.ndim else 0
        width = self.plant.observation_dim
        for name, shape in (
            ("rewards", (rows,)),
            ("observations", (rows, width)),
            ("actions", (rows, self.plant.action_dim)),
            ("masks", (rows,)),
        ):
            found = getattr(self, name).shape
            if found != shape:
                raise UserError(
                    f"data set {self.dataset_id} has {name} of shape {list(found)} for {rows} rewards, the plant's are {list(shape)}: "
                    "write the data again with one row per reward"
                )
        if self.ends.ndim != 1:
            raise UserError(
                f"data set {self.dataset_id} has ends of shape {list(self.ends.shape)}, one per episode is needed: write it again"
            )
        lengths = np.diff(self.ends, prepend=0)
        if (lengths <= 0).any():
            raise UserError(f"data set {self.dataset_id}: episode {int(np.argmax(lengths <= 0))} has no rows: remove it")
        if not self.episodes or self.ends[-1] != rows:
            last = int(self.ends[-1]) if self.episodes else 0
            raise UserError(f"data set {self.dataset_id} has {rows} rows but its last episode ends at {last}: write the data again")
        for name, shape in (("successes", (self.episodes,)), ("finals", (self.episodes, width))):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise UserError(
                    f"data set {self.dataset_id} has {name} of shape {list(array.shape)}, its {self.episodes} episodes need {list(shape)}: "
                    "write the data again"
                )

    def _validate_plant(self) -> None:
        plant = self.plant
        if not (np.isfinite(plant.control_rate) and plant.control_rate > 0):
            raise UserError(
                f"data set {self.dataset_id} has a control rate of {plant.control_rate:g} Hz, it must be positive: correct it in the data"
            )
        if not plant.actions:
            raise UserError(f"data set {self.dataset_id} has actions of no dimension: there is nothing to learn")
        empty = [spec.name for spec in plant.fields if not spec.name or not spec.size]
        if empty or not plant.fields:
            what = f"observation field '{empty[0]}' without a name or a number in it" if empty else "no observation field"
            raise UserError(f"data set {self.dataset_id} has {what}: record it again without it")

    def _refuse_not_finite(self, columns: NDArray[np.float32], what: str) -> None:
        first, count, offset = 0, 0, 0
        for block in _blocks(columns):
            finite = np.isfinite(block)
            if not finite.all():
                bad = ~finite.all(axis=1)
                first = first if count else offset + int(np.argmax(bad))
                count += int(bad.sum())
            offset += len(block)
        if count:
            raise UserError(
                f"data set {self.dataset_id} has NaN or infinity in {what}, first at {self.locate(first)} ({count} rows in all): "
                "remove those episodes and train again"
            )

    def check_actions(self) -> None:
        """Raise UserError, naming row and dimension, when an action lies outside the plant's bounds."""
        first: tuple[int, int] | None = None
        count, offset = 0, 0
        for block in _blocks(self.actions):
            outside = _outside(self._to_unit(block))
            if outside.any():
                row, column = (int(i[0]) for i in np.nonzero(outside))
                first = first or (offset + row, column)
                count += int(outside.any(axis=1).sum())
            offset += len(block)
        if first is not None:
            bound = self.plant.actions[first[1]]
            raise UserError(
                f"data set {self.dataset_id}: action '{bound.name}' is {self.actions[first]:g} at {self.locate(first[0])}, outside its "
                f"bounds [{bound.low:g}, {bound.high:g}] ({count} rows in all): "
                "pass --set clip_actions=true to clip them, or correct the bounds"
            )

    def scaled_actions(self, *, clip: bool = False, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """All actions mapped affinely from the plant's bounds to [-1, 1] and kept `ACTION_MARGIN` inside; in `out` `[N, A]` if given.

        Raises UserError when an action lies outside its bounds, unless `clip`.
        """
        limit = 1.0 - ACTION_MARGIN
        scaled = np.empty(self.actions.shape, np.float32) if out is None else out
        offset = 0
        for block in _blocks(self.actions):
            unit = self._to_unit(block)
            if not clip and _outside(unit).any():
                self.check_actions()
            scaled[offset : offset + len(block)] = np.clip(unit, -limit, limit)
            offset += len(block)
        return scaled

    def _to_unit(self, actions: NDArray[np.float32]) -> NDArray[np.float64]:
        low, high = self.plant.action_low, self.plant.action_high
        return (actions - low) * (2.0 / (high - low)) - 1.0

    def moments(self) -> Moments:
        """Count, mean and squared deviations of the observations `[O]`."""
        total = Moments.none(self.plant.observation_dim)
        for block in _blocks(self.observations):
            total = total.joined(Moments.of(block))
        return total

    def observation_scale(
        self, standardise: bool, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`mean` and `std` `[O]` that observations are scaled with: (s - mean) / std; 0 and 1 when not standardised."""
        return self.moments().scale() if standardise else Moments.identity(self.plant.observation_dim)


def concatenate(stores: Sequence[TransitionStore]) -> TransitionStore:
    """Several data sets of one plant as one, in the given order.

    Raises UserError naming every difference when their plants differ in what matters for control. Observation fields may be stored
    in another order; they are put into the first set's.
    """
    first = stores[0]
    if len(stores) == 1:
        return first
    observations, finals = [], []
    for store in stores:
        store.validate_shapes()
        differences = list(dict.fromkeys(first.plant.differences(store.plant)))
        known = {spec.name for spec in first.plant.fields}
        if extra := [spec.name for spec in store.plant.fields if spec.name not in known]:
            differences.append(f"observation fields {', '.join(extra)} are only there")
        if differences:
            raise UserError(
                f"data sets {first.dataset_id} and {store.dataset_id} cannot be combined ({'; '.join(differences)}): "
                "pass sets of one plant, or train on one of them"
            )
        observations.append(_reordered(store.observations, store.plant, first.plant))
        if store.finals is not None:
            finals.append(_reordered(store.finals, store.plant, first.plant))
    offsets = np.cumsum([0, *(len(store) for store in stores[:-1])])
    successes = [store.successes for store in stores if store.successes is not None]
    return TransitionStore(
        dataset_id=" + ".join(store.dataset_id for store in stores),
        plant=first.plant,
        observations=np.concatenate(observations),
        actions=np.concatenate([store.actions for store in stores]),
        rewards=np.concatenate([store.rewards for store in stores]),
        masks=np.concatenate([store.masks for store in stores]),
        ends=np.concatenate([store.ends + offset for store, offset in zip(stores, offsets, strict=True)]),
        successes=np.concatenate(successes) if len(successes) == len(stores) else None,
        finals=np.concatenate(finals) if len(finals) == len(stores) else None,
    )


def _reordered(rows: NDArray[np.float32], stored: PlantDescription, plant: PlantDescription) -> NDArray[np.float32]:
    if [spec.name for spec in stored.fields] == [spec.name for spec in plant.fields]:
        return rows
    columns, start = {}, 0
    for spec in stored.fields:
        columns[spec.name] = rows[:, start : start + spec.size]
        start += spec.size
    return np.concatenate([columns[spec.name] for spec in plant.fields], axis=1)


def _outside(unit: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which actions, mapped to [-1, 1], lie outside it by more than rounding."""
    return np.abs(unit) > 1.0 + 1e-6


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), BLOCK_ROWS):
        yield array[start : start + BLOCK_ROWS]
