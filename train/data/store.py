"""The transition store: flat arrays of rows in episode order.

Every reader makes one, training reads nothing else.

The arrays may be memory-mapped files (folder.py), so checks, statistics and hashes go through them in blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.progress import Progress

from .assumed import assumption_warnings, finite_range
from .frames import Frames, check_frames
from .normalization import RunningMeanStd, no_normalization

ACTION_MARGIN = 1e-5
"""Scaled actions are kept this far inside [-1, 1], as in the released code (docs/algorithm.md)."""
DIMENSION_NAMES = "dimension names"
"""Key in a plant's `environment` for the names of the numbers of its observation fields, by field."""
ENDS = "task ends: "
"""Starts the remarks about masks, which a data set with other masks no longer needs."""
BLOCK_ROWS = 65_536
"""Rows processed at a time."""


@dataclass(frozen=True)
class TransitionStore:
    """N rows of E episodes, in order.

    A row holds an observation, the action taken there, the reward for that action, and a mask: 1 while the
    task goes on, 0 once it has ended.
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
    """`[N]`: 0 where the task has ended, so that the target adds no value of the next state."""
    ends: NDArray[np.int64]
    """`[E]`: one past each episode's last row."""
    successes: NDArray[np.bool_] | None = None
    """`[E]`: whether each episode succeeded; None if the data does not say."""
    finals: NDArray[np.float32] | None = None
    """`[E, O]`: the observation after each episode's last action; None if the data does not have it.

    Training does not use it; other formats need it.
    """
    intervened: NDArray[np.bool_] | None = None
    """`[N]`: rows whose action was not the policy's but a person's, say; None where nothing is known."""
    recent: int = 0
    """How many of the last episodes are of the data set named last, where several were joined."""
    remarks: tuple[str, ...] = ()
    """What its reader noticed and a user should know, one sentence each."""
    provenance: tuple[Mapping[str, Any], ...] = ()
    """What it was made from, oldest first: `source` (a data set id), its `content_hash`, and `changes`, one
    sentence each."""
    images: Mapping[str, Frames] = field(default_factory=dict)
    """By the name of each of the plant's `images`: its frames `[N, H, W, 3]`, one per row."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        return len(self.ends)

    @property
    def sample(self) -> TransitionStore:
        """The rows that statistics are computed from: here all, of a sharded data set its first shard."""
        return self

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """`[E]`: each episode's first row."""
        return np.concatenate((np.zeros(1, np.int64), self.ends[:-1]))

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the rows; the same rows have the same hash in every file format."""
        digest = hashlib.sha256()
        for array in (self.observations, self.actions, self.rewards, self.masks, self.ends):
            digest.update(f"{array.dtype}{array.shape}".encode())
            for block in _blocks(array):
                digest.update(np.ascontiguousarray(block).data)
        for image in self.plant.images:
            frames = self.images[image.name]
            digest.update(f"{image.name}{frames.shape}{frames.digest}".encode())
        if self.intervened is not None and self.intervened.any():
            digest.update(b"intervened" + self.intervened.tobytes())
        return digest.hexdigest()

    def locate(self, row: int) -> str:
        """'episode 3, row 17' for a row number; used in messages."""
        episode = int(np.searchsorted(self.ends, row, side="right"))
        return f"episode {episode}, row {row - int(self.starts[episode])}"

    def validate(self, h: int, *, learn_value: bool = True) -> list[str]:
        """Raise UserError, naming row and field, if training cannot use this data with chunk length h.

        Returns warnings about data that can be used, one sentence each. Without `learn_value` (plain
        behaviour cloning), rewards may be uninformative.
        """
        self.validate_rows()
        if learn_value and not self.has_informative_rewards():
            raise UserError(self._uninformative_rewards())
        longest = int((self.ends - self.starts).max())
        if longest <= h:
            raise UserError(
                f"every episode of {self.dataset_id} has at most {longest} rows, but a window needs h+1 = "
                f"{h + 1}: use a smaller h or longer episodes"
            )
        return self.warnings(h)

    def validate_rows(self) -> None:
        """Raise UserError unless shapes agree, episodes are not empty, and every number is finite."""
        if not len(self):
            raise UserError(f"data set {self.dataset_id} is empty: collect some episodes first")
        self.validate_shapes()
        start = 0
        for spec in self.plant.fields:
            self._require_finite(
                self.observations[:, start : start + spec.size], f"observation field '{spec.name}'"
            )
            start += spec.size
        self._require_finite(self.actions, "actions")
        self._require_finite(self.rewards[:, None], "rewards")
        self._require_finite(self.masks[:, None], "masks")
        if any(((block != 0) & (block != 1)).any() for block in _blocks(self.masks)):
            raise UserError(
                f"data set {self.dataset_id} has masks other than 0 and 1, such as discounts: a mask is 0 "
                "where the task has ended and else 1, so write them so"
            )

    def has_informative_rewards(self) -> bool:
        """Whether the rewards can make one behaviour better than another.

        They cannot if every reward is 0, or if all rewards are equal and all masks are equal. Equal rewards
        other than 0 are informative if the task ends in some rows: they measure how long it takes.
        """
        reward = self.rewards[0]
        if any((block != reward).any() for block in _blocks(self.rewards)):
            return True
        return bool(reward != 0) and any((block != self.masks[0]).any() for block in _blocks(self.masks))

    def assumptions(self) -> Iterator[str]:
        """What the reader had to assume about the plant, one sentence each."""
        yield from assumption_warnings(self.dataset_id, self.plant, *self.action_range())
        yield from self.remarks

    def warnings(self, h: int) -> list[str]:
        """What to look at before training, one sentence each."""
        lengths = self.ends - self.starts
        found = list(self.assumptions())
        if short := int((lengths <= h).sum()):
            found.append(
                f"{short} of {self.episodes} episodes of {self.dataset_id} have at most h = {h} rows: their "
                "windows repeat the last row; the repeated rows are masked out of cloning, and windows that "
                "end early are masked out of the value terms"
            )
        if single := int((lengths == 1).sum()):
            found.append(
                f"{single} of {self.episodes} episodes of {self.dataset_id} have one row and are never "
                "drawn; --set rql.complete_rows=true draws them too"
            )
        return found

    def _uninformative_rewards(self) -> str:
        ended = "" if (self.masks[0] == 1).all() else f" and every mask is {self.masks[0]:g}"
        reward = self.rewards[0] + 0.0  # -0 is 0
        return (
            f"every reward of data set {self.dataset_id} is {reward:g}{ended}, so V cannot tell "
            "good from bad: add episodes with another outcome, relabel the rewards, or train plain "
            "behaviour cloning with --set rql.policy_value_weight=0"
        )

    def validate_shapes(self) -> None:
        """Raise UserError if shapes disagree with each other or the plant, or an episode is empty.

        Reads no rows.
        """
        self._validate_plant()
        rows = len(self.rewards) if self.rewards.ndim else 0
        width = self.plant.observation_dim
        for name, shape in (
            ("rewards", (rows,)),
            ("observations", (rows, width)),
            ("actions", (rows, self.plant.action_dim)),
            ("masks", (rows,)),
            ("intervened", (rows,)),
        ):
            if (array := getattr(self, name)) is None:
                continue
            found = array.shape
            if found != shape:
                raise UserError(
                    f"data set {self.dataset_id} has {name} of shape {list(found)} for {rows} rewards, the "
                    f"plant's are {list(shape)}: write the data again with one row per reward"
                )
        if self.ends.ndim != 1:
            raise UserError(
                f"data set {self.dataset_id} has ends of shape {list(self.ends.shape)}, one per episode is "
                "needed: write it again"
            )
        lengths = np.diff(self.ends, prepend=0)
        if (lengths <= 0).any():
            raise UserError(
                f"data set {self.dataset_id}: episode {int(np.argmax(lengths <= 0))} has no rows: remove it"
            )
        if not self.episodes or self.ends[-1] != rows:
            last = int(self.ends[-1]) if self.episodes else 0
            raise UserError(
                f"data set {self.dataset_id} has {rows} rows but its last episode ends at {last}: write the "
                "data again"
            )
        check_frames(f"data set {self.dataset_id}", self.plant, self.images, rows)
        for name, shape in (("successes", (self.episodes,)), ("finals", (self.episodes, width))):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise UserError(
                    f"data set {self.dataset_id} has {name} of shape {list(array.shape)}, its "
                    f"{self.episodes} episodes need {list(shape)}: write the data again"
                )

    def _validate_plant(self) -> None:
        plant = self.plant
        if not (np.isfinite(plant.control_rate) and plant.control_rate > 0):
            raise UserError(
                f"data set {self.dataset_id} has a control rate of {plant.control_rate:g} Hz, it must be "
                "positive: correct it in the data"
            )
        if not plant.actions:
            raise UserError(
                f"data set {self.dataset_id} has no action dimensions: record it again with actions"
            )
        empty = [spec.name for spec in plant.fields if not spec.name or not spec.size]
        if empty or not plant.inputs:
            what = (
                f"observation field '{empty[0]}' with no name or no numbers"
                if empty
                else "no observation field"
            )
            raise UserError(f"data set {self.dataset_id} has {what}: record it again without it")

    def _require_finite(self, columns: NDArray[np.float32], what: str) -> None:
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
                f"data set {self.dataset_id} has NaN or infinity in {what}, first at {self.locate(first)} "
                f"({count} rows in all): drop those episodes with `rql-deploy data fix DATA --output NEW "
                "--drop-not-finite` and train on NEW"
            )

    def action_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and greatest finite action `[A]`; infinite where a dimension has none."""
        ranges = [finite_range(block) for block in _blocks(self.actions)]
        return np.min([low for low, _ in ranges], axis=0), np.max([high for _, high in ranges], axis=0)

    def check_actions(self) -> None:
        """Raise UserError, naming row and dimension, if an action lies outside the plant's bounds."""
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
                f"data set {self.dataset_id}: action '{bound.name}' is {self.actions[first]:g} at "
                f"{self.locate(first[0])}, outside its bounds [{bound.low:g}, {bound.high:g}] ({count} rows "
                "in all): say the bounds with --action-bounds, or clip with --set clip_actions=true (or "
                "`rql-deploy data fix DATA --output NEW --clip-actions`)"
            )

    def scaled_actions(
        self, *, clip: bool = False, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """All actions `[N, A]`, mapped affinely from the plant's bounds to [-1, 1] and kept `ACTION_MARGIN`
        inside.

        Writes into `out` if given. Raises UserError if an action lies outside its bounds, unless `clip`.
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

    def running_mean_std(self) -> RunningMeanStd:
        """Mean and spread of the observations, to be merged with other shards'."""
        total = RunningMeanStd.empty(self.plant.observation_dim)
        for block in _blocks(self.observations):
            total = total.merged(RunningMeanStd.of(block))
        return total

    def normalization(
        self, standardise: bool, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`mean` and `std` `[O]`; networks see (observation - mean) / std. 0 and 1 unless `standardise`.

        `progress` is for sharded stores; one store in memory needs none.
        """
        if not standardise:
            return no_normalization(self.plant.observation_dim)
        return self.running_mean_std().mean_std()


def _outside(unit: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which actions, mapped to [-1, 1], lie outside by more than rounding."""
    return np.abs(unit) > 1.0 + 1e-6


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), BLOCK_ROWS):
        yield array[start : start + BLOCK_ROWS]
