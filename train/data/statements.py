"""What a user says of a plant that the data does not say, or says wrongly: rate, motion, action bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, PlantDescription
from rql_deploy.errors import UserError, suggestion
from rql_deploy.limits import Limits
from rql_deploy.plant_description import ASSUMED_RATE, ActionItem
from rql_deploy.structs import convert

from .assumed import with_guessed_bounds
from .shards import ShardedStore, with_plant
from .store import TransitionStore

Store = TypeVar("Store", bound="TransitionStore | ShardedStore")
MODES = ("absolute", "delta")
DATASET = "dataset"
RANGE = re.compile(r"\[\s*([^,\]]+),([^,\]]+)\]")


@dataclass(frozen=True)
class Statements:
    """The options --rate, --action-mode and --action-bounds; what is empty leaves the data its own word."""

    rate: float | None = None
    """Control rate in Hz."""
    mode: str = ""
    """`delta` or `absolute` for all dimensions, or `NAME=delta`; several are separated by commas."""
    bounds: str = ""
    """A TOML file with tables `[actions.NAME]` of `low` and `high`, such as limits.toml; `dataset` for the
    data's own range with a margin; or `[LOW,HIGH]` for all dimensions."""

    def of_one(self, store: Store) -> Store:
        """One data set with all that can be said before it is joined to others.

        Raises UserError for a statement that cannot be understood, or names what the data does not have.
        """
        if self == NOTHING_STATED:
            return store
        plant = self._spoken(store.plant)
        if self.bounds == DATASET:
            guessing = [_assuming(action, "bounds") for action in plant.actions]
            plant = with_guessed_bounds(_with_actions(plant, guessing), *store.action_range())
        elif self.bounds:
            plant = _with_actions(plant, _bounds(plant, _read_bounds(self.bounds, plant)))
        return with_plant(store, plant)

    def of_trained(self, plant: PlantDescription) -> PlantDescription:
        """The plant of a trained policy, whose bounds can be confirmed but not moved any more.

        Raises UserError for other bounds.
        """
        plant = self._spoken(plant)
        if not self.bounds:
            return plant
        bounds = {a.name: (a.low, a.high) for a in plant.actions}
        said = bounds if self.bounds == DATASET else _read_bounds(self.bounds, plant)
        for name, (low, high) in said.items():
            if (low, high) != bounds[name]:
                raise UserError(
                    f"the policy was trained with bounds [{bounds[name][0]:g}, {bounds[name][1]:g}] of "
                    f"action '{name}', not [{low:g}, {high:g}]: train with these --action-bounds, or take "
                    "those it has with --action-bounds dataset"
                )
        return _with_actions(plant, _bounds(plant, said))

    def _spoken(self, plant: PlantDescription) -> PlantDescription:
        """The plant with the stated rate and modes."""
        if self.rate is not None:
            if not 0 < self.rate < np.inf:
                raise UserError(f"--rate takes a number of Hz above 0, not {self.rate:g}")
            environment = {key: value for key, value in plant.environment.items() if key != ASSUMED_RATE}
            plant = msgspec.structs.replace(
                plant, control_rate=self.rate, environment=environment, assumed=()
            )
        return _with_actions(plant, _modes(self.mode, plant)) if self.mode else plant

    def of_all(self, store: Store) -> Store:
        """The joined data set: the range of all its parts, where the user takes the data's, is now said."""
        if self.bounds != DATASET:
            return store
        said = [_saying(action, "bounds") for action in store.plant.actions]
        return with_plant(store, _with_actions(store.plant, said))


NOTHING_STATED = Statements()


def _assuming(action: ActionDimension, item: ActionItem) -> ActionDimension:
    return msgspec.structs.replace(action, assumed=tuple(dict.fromkeys((item, *action.assumed))))


def _saying(action: ActionDimension, *items: ActionItem) -> ActionDimension:
    return msgspec.structs.replace(action, assumed=tuple(i for i in action.assumed if i not in items))


def _with_actions(plant: PlantDescription, actions: list[ActionDimension]) -> PlantDescription:
    return msgspec.structs.replace(plant, actions=tuple(actions))


def _modes(text: str, plant: PlantDescription) -> list[ActionDimension]:
    """The dimensions with the modes of `delta,gripper=absolute`; later words override earlier ones."""
    said: dict[str, str] = {}
    names = [action.name for action in plant.actions]
    for word in text.split(","):
        name, _, mode = word.strip().rpartition("=")
        if mode not in MODES:
            raise UserError(
                "--action-mode takes delta, absolute or NAME=delta, separated by commas, not "
                f"'{word.strip()}'"
            )
        if name and name not in names:
            raise UserError(
                f"--action-mode names an action '{name}' that is not there{suggestion(name, names)}"
            )
        said |= {name: mode} if name else dict.fromkeys(names, mode)
    return [
        msgspec.structs.replace(
            _saying(action, "mode", "hold"),
            mode=said[action.name],
            hold="zero" if said[action.name] == "delta" else "repeat",
        )
        if action.name in said
        else action
        for action in plant.actions
    ]


def _bounds(plant: PlantDescription, bounds: Mapping[str, tuple[float, float]]) -> list[ActionDimension]:
    return [
        msgspec.structs.replace(
            _saying(action, "bounds"), low=bounds[action.name][0], high=bounds[action.name][1]
        )
        if action.name in bounds
        else action
        for action in plant.actions
    ]


def _read_bounds(text: str, plant: PlantDescription) -> dict[str, tuple[float, float]]:
    names = [action.name for action in plant.actions]
    if matched := RANGE.fullmatch(text.strip()):
        try:
            low, high = (float(part) for part in matched.groups())
        except ValueError:
            low, high = 1.0, 0.0
        if not -np.inf < low < high < np.inf:
            raise UserError(f"--action-bounds takes [LOW,HIGH] with LOW below HIGH, not {text}")
        return dict.fromkeys(names, (low, high))
    found = dict(_file_bounds(Path(text)))
    if unknown := [name for name in found if name not in names]:
        raise UserError(
            f"{text} bounds an action '{unknown[0]}' that is not there{suggestion(unknown[0], names)}"
        )
    return found


def _file_bounds(path: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    try:
        table = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"--action-bounds takes a TOML file, 'dataset' or [LOW,HIGH], and {path} is none of them "
            f"({error.strerror})"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML ({error}): write [actions.NAME] with low and high") from error
    for name, limit in convert(table, Limits, path.name).actions.items():
        if limit.low is None or limit.high is None or not limit.low < limit.high:
            raise UserError(f"{path}: [actions.{name}] should give both low and high, low below high")
        yield name, (limit.low, limit.high)


def outside_bounds(store: TransitionStore) -> list[str]:
    """Which dimensions of the data leave their bounds, a sentence each."""
    low, high = store.action_range()
    slack: NDArray[np.float64] = 1e-6 * (store.plant.action_high - store.plant.action_low)
    return [
        f"action '{a.name}' of {store.dataset_id} reaches [{low[i]:g}, {high[i]:g}], beyond its bounds "
        f"[{a.low:g}, {a.high:g}]: training refuses it without --set clip_actions=true"
        for i, a in enumerate(store.plant.actions)
        if low[i] < a.low - slack[i] or high[i] > a.high + slack[i]
    ]
