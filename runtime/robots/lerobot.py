"""Any robot of LeRobot (`lerobot.robots.Robot`) as a plant.

    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    plant = LeRobotPlant(SO101Follower(SO101FollowerConfig(port="/dev/ttyACM0", id="arm")), control_rate=30.0)
    with RemotePolicy.connect(ENDPOINT, plant=plant.description) as policy:
        with plant, RealTimeLoop(plant, policy, accept_assumed=True) as loop:
            loop.run_episode()

Nothing of LeRobot is imported here: a robot is what has its methods. It runs in LeRobot's own environment, in
which the base install of this package is enough.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField, PlantDescription
from rql_deploy.errors import UserError, suggestion
from rql_deploy.motion_names import dimension
from rql_deploy.structs import Finite, Record, convert

STATE = "observation.state"
"""The field that LeRobot's own data sets have for all numbers that a robot observes."""
CAMERA = "observation.images."


class Robot(Protocol):
    """The part of LeRobot's interface that is used."""

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """By name: the type of a number, or the shape (height, width, colours) of a picture."""
        ...

    @property
    def action_features(self) -> Mapping[str, Any]:
        """By name, the numbers of an action."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether it can be observed and commanded."""
        ...

    @property
    def is_calibrated(self) -> bool:
        """Whether its numbers mean what they should."""
        ...

    def connect(self, calibrate: bool = True) -> None:
        """Open its bus and cameras; `calibrate` may ask on a terminal."""
        ...

    def get_observation(self) -> Mapping[str, Any]:
        """What it reads now, by name."""
        ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Send an action by name; returns what was sent, which the robot may have limited."""
        ...

    def disconnect(self) -> None:
        """Let go of bus and cameras."""
        ...


class RobotFile(Record, frozen=True):
    """A TOML file that `rql-deploy run lerobot:FILE` reads."""

    robot: str
    """Module and class, such as `lerobot.robots.so_follower:SO101Follower`."""
    rate: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    """Hz: the policy's, and that of the recordings that it was trained on."""
    config: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Entries of the robot's own configuration: port, id, cameras."""
    fields: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Fields of the observation, each with the names of its numbers; left out, all numbers are one field."""
    rest_at: Mapping[str, Finite] = msgspec.field(default_factory=dict)
    """Where targets start that the robot does not observe."""


class LeRobotPlant:
    """Drives one robot; a context manager, or call `close`.

    `observe` and `apply` take as long as the robot's bus does. `sent` has what the robot's own limits left of
    the last command.
    """

    def __init__(
        self,
        robot: Robot,
        *,
        control_rate: float,
        fields: Mapping[str, Sequence[str]] | None = None,
        rest_at: Mapping[str, float] | None = None,
        horizon: int | None = None,
    ):
        """
        Args:
            control_rate: Hz.
            fields: fields of the observation, each with the names of its numbers in order; default all
                numbers in the robot's order, as LeRobot records them.
            rest_at: where absolute targets start that the robot does not observe.
            horizon: commands after which an episode ends; default when it is stopped.

        Raises UserError for names that the robot does not have.
        """
        self._robot, self._horizon, self._rest_at = robot, horizon, dict(rest_at or {})
        observed = dict(robot.observation_features)
        numbers = [name for name, kind in observed.items() if not _is_picture(kind)]
        self._cameras = {CAMERA + name: name for name, kind in observed.items() if _is_picture(kind)}
        self._fields = {name: list(parts) for name, parts in (fields or {STATE: numbers}).items()}
        for name, parts in self._fields.items():
            if unknown := [part for part in parts if part not in numbers]:
                raise UserError(
                    f"field '{name}' has '{unknown[0]}', which the robot does not observe"
                    f"{suggestion(unknown[0], numbers)}"
                )
        self.description = PlantDescription(
            task=str(getattr(robot, "name", type(robot).__name__)),
            fields=(
                *(ObservationField(name, (len(parts),)) for name, parts in self._fields.items()),
                *(
                    ObservationField(name, tuple(observed[camera]), dtype="uint8")
                    for name, camera in self._cameras.items()
                ),
            ),
            actions=tuple(map(dimension, robot.action_features)),
            control_rate=control_rate,
        )
        """The robot's side of a contract. It knows neither bounds nor units: the policy's data does."""
        unmeasured = [
            action.name
            for action in self.description.actions
            if action.mode == "absolute" and action.name not in numbers and action.name not in self._rest_at
        ]
        if unmeasured:
            raise UserError(
                f"the robot takes targets for '{unmeasured[0]}' and does not observe it: say in rest_at "
                "where it starts"
            )
        self._seen: Mapping[str, Any] = {}
        self._ticks = 0
        self.sent: Mapping[str, Any] = {}
        """The last action as the robot has sent it to its motors."""

    @property
    def finished(self) -> bool:
        """Whether the episode has had its commands."""
        return self._horizon is not None and self._ticks >= self._horizon

    @property
    def success(self) -> bool:
        """Whether the task is done, which a robot does not know."""
        return False

    def reset(self, seed: int | None = None) -> None:
        """Connect if need be, and look; nothing moves.

        Raises UserError for a robot that is not calibrated: LeRobot asks for that on a terminal.
        """
        if not self._robot.is_connected:
            self._robot.connect(calibrate=False)
        if not self._robot.is_calibrated:
            raise UserError("the robot is not calibrated: run lerobot-calibrate first, with the same id")
        self._ticks = 0
        self.observe()

    def observe(self) -> Mapping[str, NDArray[Any]]:
        """What the robot reads now; raises UserError where a number is missing."""
        self._seen = self._robot.get_observation()
        names = [*(part for parts in self._fields.values() for part in parts), *self._cameras.values()]
        if missing := [name for name in names if name not in self._seen]:
            raise UserError(f"the robot's observation lacks '{missing[0]}', which its features name")
        fields: dict[str, NDArray[Any]] = {
            name: np.array([float(self._seen[part]) for part in parts], np.float32)
            for name, parts in self._fields.items()
        }
        fields.update({name: np.asarray(self._seen[camera]) for name, camera in self._cameras.items()})
        return fields

    def apply(self, action: NDArray[np.float32]) -> None:
        """Send one action, by the names of its dimensions."""
        named = zip(self.description.actions, action.tolist(), strict=True)
        self.sent = self._robot.send_action({dimension.name: value for dimension, value in named})
        self._ticks += 1

    def rest(self) -> NDArray[np.float32]:
        """The command that keeps the robot where it is: targets where it is, speeds and changes zero."""
        return np.array(
            [
                0.0
                if action.mode == "delta"
                else float(self._seen.get(action.name, self._rest_at.get(action.name, 0.0)))
                for action in self.description.actions
            ],
            np.float32,
        )

    def close(self) -> None:
        """Disconnect."""
        if self._robot.is_connected:
            self._robot.disconnect()

    def __enter__(self) -> LeRobotPlant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_robot(path: Path, *, horizon: int | None = None) -> LeRobotPlant:
    """The robot that a TOML file describes; raises UserError naming the entry that does not fit."""
    try:
        data = msgspec.toml.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): correct it") from error
    said = convert(data, RobotFile, path.name)
    module, _, name = said.robot.partition(":")
    try:
        robot_class = getattr(importlib.import_module(module), name)
        config_class = robot_class.config_class
    except Exception as error:  # a module of others may raise anything while it is imported
        raise UserError(
            f"{path.name}.robot is '{said.robot}', which cannot be loaded ({error}): write MODULE:CLASS, and "
            "run in LeRobot's environment"
        ) from error
    try:
        robot = robot_class(_configured(config_class, said.config))
    except Exception as error:
        raise UserError(f"{path.name}.config does not fit {name} ({error}): correct it") from error
    return LeRobotPlant(
        robot, control_rate=said.rate, fields=said.fields or None, rest_at=said.rest_at, horizon=horizon
    )


def _configured(config_class: Any, entries: Mapping[str, Any]) -> Any:
    """A robot's configuration; LeRobot's own decoder reads nested ones, such as cameras."""
    try:
        import draccus
    except ModuleNotFoundError:
        return config_class(**entries)
    return draccus.decode(config_class, dict(entries))


def _is_picture(kind: Any) -> bool:
    return isinstance(kind, tuple | list)
