"""Corrections of a data set: episodes dropped, names changed, bounds and motion stated, actions clipped."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError, suggestion

from .edits import select
from .report import episode_hashes
from .statements import NOTHING_STATED, Statements
from .store import DIMENSION_NAMES, TransitionStore

KINDS = ("action", "observation")
RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Fixes:
    """What `rql-deploy data fix` shall do, in this order."""

    rename: tuple[str, ...] = ()
    """`OLD=NEW` for an action dimension, an observation field or a camera; `action.OLD` or `observation.OLD`
    where both have the name."""
    drop: tuple[str, ...] = ()
    """Numbers of episodes, from 0 as the source counts them: `3`, `3,7` or `10-12`."""
    drop_short: int = 0
    """Drop episodes of fewer rows than this."""
    drop_not_finite: bool = False
    """Drop episodes with NaN or infinity."""
    drop_duplicates: bool = False
    """Keep the first of episodes with the same observations and actions."""
    stated: Statements = NOTHING_STATED
    """Rate, motion and bounds of the actions."""
    clip_actions: bool = False
    """Clip actions to their bounds."""

    def of(self, store: TransitionStore) -> TransitionStore:
        """The corrected data set; its provenance names the source and every change with its counts.

        A correction that finds nothing to do changes nothing, so that correcting twice is correcting once.
        Raises UserError where nothing is asked for, a name or number is not there, or no episode is left.
        """
        if self == Fixes():
            raise UserError(
                "nothing says what to correct: pass --drop, --drop-short, --drop-not-finite, "
                "--drop-duplicates, --rename, --action-bounds, --action-mode, --rate or --clip-actions"
            )
        changes: list[str] = []
        fixed = with_names(store, renamed(store.plant, self.rename, changes))
        fixed = self._dropped(fixed, changes)
        stated = self.stated.of_all(self.stated.of_one(fixed))
        if stated.plant != fixed.plant:
            changes += _stated_differences(fixed.plant, stated.plant)
        if self.clip_actions:
            stated = clipped(stated, changes)
        if not changes:
            return stated
        return dataclasses.replace(
            stated,
            dataset_id=f"{store.dataset_id.removesuffix('-fixed')}-fixed",
            provenance=(
                *store.provenance,
                {"source": store.dataset_id, "content_hash": store.content_hash, "changes": changes},
            ),
        )

    def _dropped(self, store: TransitionStore, changes: list[str]) -> TransitionStore:
        keep = np.ones(store.episodes, np.bool_)
        for reason, drop in self._reasons(store):
            if count := int((drop & keep).sum()):
                changes.append(f"{count:,} of {store.episodes:,} episodes dropped: {reason}")
            keep &= ~drop
        if keep.all():
            return store
        if not keep.any():
            raise UserError(
                f"no episode of {store.dataset_id} would be left: {'; '.join(changes)}; drop fewer of them"
            )
        return select(store, np.flatnonzero(keep), "")

    def _reasons(self, store: TransitionStore) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Why episodes are dropped, and which `[E]`."""
        if self.drop:
            named = episode_numbers(self.drop, store)
            yield f"named ({', '.join(self.drop)})", np.isin(np.arange(store.episodes), named)
        if self.drop_short > 0:
            yield f"fewer than {self.drop_short} rows", store.ends - store.starts < self.drop_short
        if self.drop_not_finite:
            yield "NaN or infinity", ~np.minimum.reduceat(_finite_rows(store), store.starts)
        if self.drop_duplicates:
            seen: set[bytes] = set()
            copies = np.zeros(store.episodes, np.bool_)
            for i, digest in enumerate(episode_hashes(store, all_frames=True)):
                copies[i] = digest in seen
                seen.add(digest)
            yield "copies of others", copies


def _finite_rows(store: TransitionStore) -> NDArray[np.bool_]:
    rows = np.isfinite(store.observations).all(axis=1) & np.isfinite(store.actions).all(axis=1)
    return np.asarray(rows & np.isfinite(store.rewards) & np.isfinite(store.masks))


def episode_numbers(words: Sequence[str], store: TransitionStore) -> list[int]:
    """The episodes of `3,7` and `10-12`; raises UserError for a number that the data set does not have.

    The numbers are the source's: where a correction dropped some already, those after them have moved.
    """
    found: list[int] = []
    for word in (part.strip() for text in words for part in text.split(",")):
        if not (matched := RANGE.fullmatch(word)):
            raise UserError(f"--drop takes numbers of episodes such as 3, 3,7 or 10-12, not '{word}'")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if not first <= last < store.episodes:
            raise UserError(
                f"--drop {word}: data set {store.dataset_id} has episodes 0 to {store.episodes - 1}"
            )
        found += range(first, last + 1)
    return found


def renamed(plant: PlantDescription, words: Sequence[str], changes: list[str]) -> PlantDescription:
    """The plant with other names, and what was changed, appended to `changes`.

    A name that is gone and whose new name is there has been changed before. Raises UserError for a name that
    is not there, that both an action and a field have, or that would be there twice.
    """
    names = {
        "action": [action.name for action in plant.actions],
        "observation": [field.name for field in plant.inputs],
    }
    for word in words:
        old, separator, new = word.partition("=")
        if not (separator and old and new):
            raise UserError(f"--rename takes OLD=NEW, not '{word}'")
        kind, old = _find(old, new, names)
        if not kind:
            continue
        if new in names[kind]:
            raise UserError(
                f"--rename {word}: there is {KIND_WORDS[kind]} '{new}' already; pass another name"
            )
        names[kind][names[kind].index(old)] = new
        changes.append(f"{KIND_WORDS[kind]} '{old}' renamed '{new}'")
    count = len(plant.fields)
    moved = dict(zip((f.name for f in plant.fields), names["observation"], strict=False))
    environment: dict[str, Any] = dict(plant.environment)
    if dimensions := environment.get(DIMENSION_NAMES):
        environment[DIMENSION_NAMES] = {moved.get(name, name): value for name, value in dimensions.items()}
    return msgspec.structs.replace(
        plant,
        actions=_with_names(plant.actions, names["action"]),
        fields=_with_names(plant.fields, names["observation"][:count]),
        images=_with_names(plant.images, names["observation"][count:]),
        environment=environment,
    )


def with_names(store: TransitionStore, plant: PlantDescription) -> TransitionStore:
    """The data set with a plant whose parts have other names."""
    pairs = zip(store.plant.images, plant.images, strict=True)
    images = {new.name: store.images[old.name] for old, new in pairs}
    return dataclasses.replace(store, plant=plant, images=images)


KIND_WORDS = {"action": "an action", "observation": "an observation field"}


def _find(word: str, new: str, names: dict[str, list[str]]) -> tuple[str, str]:
    """Kind and name of what `word` names; the kind is "" where it has the name `new` already."""
    asked, _, rest = word.partition(".")
    for candidates, name in ((KINDS, word), ((asked,) if asked in KINDS else (), rest)):
        having = [kind for kind in candidates if name in names[kind]]
        if len(having) == 2:
            raise UserError(
                f"an action and an observation field are named '{name}': say which with action.{name} or "
                f"observation.{name}"
            )
        if having:
            return having[0], name
    if new in (*names["action"], *names["observation"]):
        return "", word
    every = sorted({*names["action"], *names["observation"]})
    raise UserError(f"--rename: there is no action or observation field '{word}'{suggestion(word, every)}")


def _with_names(items: Sequence[Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(msgspec.structs.replace(item, name=name) for item, name in zip(items, names, strict=True))


def _stated_differences(before: PlantDescription, after: PlantDescription) -> Iterator[str]:
    """What was said of rate, motion and bounds, a sentence each."""
    if (before.control_rate, before.rate_assumed) != (after.control_rate, after.rate_assumed):
        yield f"control rate stated: {after.control_rate:g} Hz"
    for old, new in zip(before.actions, after.actions, strict=True):
        if (old.mode, old.hold) != (new.mode, new.hold) or ("mode" in old.assumed) != ("mode" in new.assumed):
            yield f"action '{new.name}' stated: {new.mode}"
        if (old.low, old.high, "bounds" in old.assumed) != (new.low, new.high, "bounds" in new.assumed):
            yield f"bounds of action '{new.name}' stated: [{new.low:g}, {new.high:g}]"


def clipped(store: TransitionStore, changes: list[str]) -> TransitionStore:
    """Actions within their bounds, and how many rows were not, appended to `changes`; NaN stays NaN."""
    low = store.plant.action_low.astype(np.float32)
    high = store.plant.action_high.astype(np.float32)
    actions = np.clip(store.actions, low, high)
    for i, action in enumerate(store.plant.actions):
        moved = (actions[:, i] != store.actions[:, i]) & ~np.isnan(store.actions[:, i])
        if moved.any():
            changes.append(
                f"action '{action.name}' clipped to [{action.low:g}, {action.high:g}] in "
                f"{int(moved.sum()):,} rows"
            )
    return dataclasses.replace(store, actions=actions)
