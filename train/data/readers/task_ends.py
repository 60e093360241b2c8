"""Where the tasks of a file's episodes end, decided once for the whole file.

Formats mark ends in many ways (success flags, terminations, `done`, rewards of 1), and the same key means
different things in different files. One demonstration alone cannot tell them apart, all together often can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.train.data.store import ENDS

COLUMNS = ("rewards", "dones", "terminated", "truncated", "success", "masks")


@dataclass(frozen=True)
class EpisodeFlags:
    """What a file says of one episode's rows `[n]`; None for what it does not say."""

    where: str
    """File and episode, for messages."""
    rewards: NDArray[np.float32] | None = None
    dones: NDArray[np.bool_] | None = None
    """The end of the task, of the recording, or of both: files differ."""
    terminated: NDArray[np.bool_] | None = None
    """The task has ended, by success or failure."""
    truncated: NDArray[np.bool_] | None = None
    """The recording was cut off here although the task goes on."""
    success: NDArray[np.bool_] | None = None
    """The goal is reached in this row."""
    masks: NDArray[np.float32] | None = None
    succeeded: bool | None = None
    """Said of the episode as a whole."""


@dataclass(frozen=True)
class TaskEnds:
    """What was decided for the episodes of a file."""

    masks: list[NDArray[np.float32]]
    successes: list[bool] | None
    remarks: list[str] = field(default_factory=list)


def decide_task_ends(episodes: Sequence[EpisodeFlags], lengths: Sequence[int]) -> TaskEnds:
    """Masks of all episodes, and which of them succeeded.

    The first that the file has decides: masks; terminations, or `done` without truncations; rows of success,
    or rewards of 1 where all are 0 or 1, of 0 where all are -1 or 0; `done`, if it is more than the mark of a
    recording's last row; the last rows of episodes that are said to have succeeded.
    Success that is never lost again ends the task too; success that is lost in some episode belongs to a task
    that goes on.

    Raises UserError if only some episodes have a column, or rows follow a truncation.
    """
    remarks: list[str] = []
    episodes = _known_success(episodes, remarks)
    _require_same_columns(episodes)
    _require_truncation_at_end(episodes)
    said = _said(episodes, remarks)
    reached = _reached(episodes, remarks)
    successes = said
    if successes is None and reached is not None:
        successes = [bool(rows.any()) for rows in reached]
    if (masks := _column(episodes, "masks")) is not None:
        return TaskEnds(masks, successes, remarks)
    explicit = _explicit(episodes)
    if explicit is not None:
        ended = explicit
        if reached is not None and _never_lost(reached):
            ended = [a | b for a, b in zip(explicit, reached, strict=True)]
        elif reached is not None:
            remarks.append(_goes_on(reached))
    elif reached is not None:
        ended = reached
    elif (dones := _column(episodes, "dones")) is not None:
        ended = _from_dones(dones, said, remarks)
    else:
        # Recorders end an episode at success: where nothing says more, its last row is the task's end.
        ended = [np.zeros(count, np.bool_) for count in lengths]
        for i, rows in enumerate(ended):
            rows[-1] = said is not None and said[i]
    return TaskEnds([1.0 - rows.astype(np.float32) for rows in ended], successes, remarks)


def as_flags(where: str, name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a column is set; raises UserError where it holds NaN, which says neither."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise UserError(
            f"{where} has NaN in '{name}' (row {int(np.argmax(np.isnan(values.reshape(-1))))}), which should "
            "be 0 or 1: correct it there"
        )
    flags: NDArray[np.bool_] = values != 0
    return flags


def _column(episodes: Sequence[EpisodeFlags], name: str) -> list[Any] | None:
    """One column of all episodes, which all have or lack it."""
    values = [getattr(episode, name) for episode in episodes]
    return None if values[0] is None else values


def _known_success(episodes: Sequence[EpisodeFlags], remarks: list[str]) -> Sequence[EpisodeFlags]:
    """Without rows of success, if only some episodes have them."""
    count = sum(episode.success is not None for episode in episodes)
    if not 0 < count < len(episodes):
        return episodes
    remarks.append(
        f"{ENDS}only {count} of {len(episodes)} episodes say in which rows they succeeded, so it is left "
        "open for all"
    )
    return [replace(episode, success=None) for episode in episodes]


def _require_same_columns(episodes: Sequence[EpisodeFlags]) -> None:
    for column in COLUMNS:
        lacking = [e.where for e in episodes if getattr(e, column) is None]
        if 0 < len(lacking) < len(episodes):
            raise UserError(
                f"{lacking[0]} has no {column}, which other episodes have, so nothing says where its task "
                f"ends ({len(lacking)} of {len(episodes)} episodes): add them, or leave those episodes out"
            )


def _require_truncation_at_end(episodes: Sequence[EpisodeFlags]) -> None:
    for e in episodes:
        if e.truncated is not None and e.truncated[:-1].any():
            raise UserError(
                f"{e.where} is cut off (truncated) in row {int(np.argmax(e.truncated))} but goes on to row "
                f"{len(e.truncated) - 1}: another episode was joined to it, so split it there"
            )


def _said(episodes: Sequence[EpisodeFlags], remarks: list[str]) -> list[bool] | None:
    known = [e.succeeded for e in episodes if e.succeeded is not None]
    if known and len(known) < len(episodes):
        remarks.append(
            f"{ENDS}only {len(known)} of {len(episodes)} episodes say whether they succeeded, so it is left "
            "open for all"
        )
    return known if len(known) == len(episodes) else None


def _reached(episodes: Sequence[EpisodeFlags], remarks: list[str]) -> list[NDArray[np.bool_]] | None:
    """Rows of success, said or read from rewards of 0 and 1, or -1 and 0; rewards that are all alike say
    nothing, nor do those for going on, nor penalties.
    """
    if (success := _column(episodes, "success")) is not None:
        return success
    rewards = _column(episodes, "rewards")
    if rewards is None or episodes[0].terminated is not None:
        return None
    highest = max(float(rows.max()) for rows in rewards)
    sparse = all(bool(np.isin(rows, (highest - 1.0, highest)).all()) for rows in rewards)
    reached = [rows == highest for rows in rewards]
    alike = highest == 0.0 and all(bool(rows.all()) for rows in reached)
    if not sparse or highest not in (0.0, 1.0) or alike:
        return None
    long = [rows for rows in reached if len(rows) > 1]
    if long and np.mean([rows[0] for rows in long]) > 0.5:
        if highest == 0.0:
            return None
        remarks.append(
            f"{ENDS}most episodes begin with a reward of 1, so that it is taken for a reward for going on "
            "and not for success; if it does mean success, use `rql-deploy data relabel --success`"
        )
        return None
    return reached


def _explicit(episodes: Sequence[EpisodeFlags]) -> list[NDArray[np.bool_]] | None:
    if (terminated := _column(episodes, "terminated")) is not None:
        return terminated
    dones, truncated = _column(episodes, "dones"), _column(episodes, "truncated")
    if dones is None or truncated is None:
        return None
    return [done & ~cut for done, cut in zip(dones, truncated, strict=True)]


def _never_lost(reached: Sequence[NDArray[np.bool_]]) -> bool:
    return not any(bool((rows[:-1] & ~rows[1:]).any()) for rows in reached)


def _goes_on(reached: Sequence[NDArray[np.bool_]]) -> str:
    rows, count = sum(int(r.sum()) for r in reached), sum(bool(r.any()) for r in reached)
    return (
        f"{ENDS}success is reached in {rows:,} rows of {count:,} episodes and lost again, so this is a task "
        "that goes on after success: its masks are 0 only where the data terminates it; if it should end at "
        "success, use `rql-deploy data relabel --success`"
    )


def _from_dones(
    dones: Sequence[NDArray[np.bool_]], said: Sequence[bool] | None, remarks: list[str]
) -> list[NDArray[np.bool_]]:
    """Where `done` ends the task. In every last row it only marks the end of a recording.

    robomimic writes it at success (`done_mode` 0), in last rows (1) or both (2). What is said of success
    stands above it.
    """
    if said is None and not all(bool(rows[-1]) for rows in dones):
        alone = sum(bool(rows[-1]) and not rows[:-1].any() for rows in dones)
        if alone:
            remarks.append(
                f"{ENDS}nothing but 'done' in the last rows of {alone:,} of {len(dones):,} episodes says "
                "where the task ends, so it is taken to end there; if some of them only mark the end of a "
                "recording, leave it out with --map done="
            )
        return list(dones)
    found = [rows.copy() for rows in dones]
    open_ends = 0
    for i, rows in enumerate(found):
        # A last row that success led up to ends the task; one alone does not, unless the episode succeeded.
        rows[-1] &= len(rows) > 1 and bool(rows[-2])
        rows[-1] |= said is not None and said[i]
        open_ends += said is None and not rows[-1]
    if open_ends:
        remarks.append(
            f"{ENDS}'done' is set in the last row of every episode, which only marks the end of a recording, "
            f"so the task is not taken to end there in {open_ends:,} of {len(dones):,} episodes: if it does, "
            "pass --map terminated=KEY with the name of that column"
        )
    return found
