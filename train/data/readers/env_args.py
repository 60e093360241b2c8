"""What `env_args` of robomimic's, MimicGen's and Isaac Lab's files says of rate and actions.

robosuite's controller settings come in one of these forms:

    controller_configs: {"type": "OSC_POSE", "control_delta": false, "input_max": 1, ...}     up to 1.4
    controller_configs: [{...}, {...}]                                                        up to 1.4
    controller_configs: {"body_parts": {"right": {"type": ..., "input_type": "absolute"}}}    from 1.5
    controller_configs: {"body_parts": {"arms": {"right": {...}}, "torso": {...}}}            from 1.5

Isaac Lab's names of tasks end in the kind of their actions: `-IK-Rel`, `-IK-Abs`, `-Joint-Pos`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from rql_deploy.contract import ActionDimension
from rql_deploy.train.data.assumed import UNSAID

ARM = {"OSC_POSE": 6, "OSC_POSITION": 3, "IK_POSE": 6}
"""Numbers that an arm's controller takes; joint controllers take one for each joint."""
JOINTS = {"UR5e": 6}
MOST_JOINTS = 7
"""Of all other arms of robosuite."""
JOINT_UNITS = {"JOINT_POSITION": "rad", "JOINT_VELOCITY": "rad/s", "JOINT_TORQUE": "Nm"}
ROBOSUITE = 1
"""`env_args.type` of robosuite environments."""
ISAAC_KINDS = {"-IK-Rel-": False, "-IK-Abs-": True, "-Joint-Pos-": True}
"""Parts of Isaac Lab's names of tasks, and whether actions are absolute targets."""
_RANGE = (("min", -1.0), ("max", 1.0))
RATES_OF_MOTION = ("JOINT_VELOCITY", "JOINT_TORQUE")
"""What these take is neither a change nor a target, but must stop in a hold, as a change does."""


def control_rate(settings: Mapping[str, Any]) -> float | None:
    """Actions per second; None where `env_args` does not say."""
    if rate := _kwargs(settings).get("control_freq"):
        return float(rate)
    simulation = settings.get("sim_args")
    if isinstance(simulation, Mapping) and {"dt", "decimation"} <= simulation.keys():
        return 1.0 / (float(simulation["dt"]) * float(simulation["decimation"]))
    return None


def described_actions(settings: Mapping[str, Any], width: int) -> tuple[ActionDimension, ...]:
    """The dimensions of an action `[width]`, in [-1, 1] where bounds are not said."""
    if settings.get("type") == ROBOSUITE:
        return _robosuite_actions(_kwargs(settings), width)
    name = f"{settings.get('env_name') or ''}-"
    kinds = {absolute for kind, absolute in ISAAC_KINDS.items() if kind in name}
    if len(kinds) != 1:
        return _dimensions(width, UNSAID)
    absolute = kinds.pop()
    actions = [_moving(action, absolute) for action in _dimensions(width, ("bounds", "unit"))]
    if "Franka" in name and width in (ARM["IK_POSE"] + 1, MOST_JOINTS + 1):
        actions[-1] = msgspec.structs.replace(actions[-1], mode="absolute", hold="repeat")
    return tuple(actions)


def _kwargs(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return settings.get("env_kwargs") or {}


def _robosuite_actions(kwargs: Mapping[str, Any], width: int) -> tuple[ActionDimension, ...]:
    """Of one arm with a one-number gripper all is said but the bounds of absolute targets.

    Of other robots it is not said which numbers belong to which part, unless all parts are of one mode.
    """
    arms = list(_arms(kwargs.get("controller_configs")))
    modes = {_is_absolute(arm) for arm in arms}
    if len(modes) != 1:
        return _dimensions(width, UNSAID if True in modes else ("mode", "hold", "unit"))
    absolute = modes.pop()
    count = _arm_width(arms[0], kwargs)
    if len(arms) > 1 or width != count + 1:
        # The grippers among them take targets: only where the arms do too, all are of one mode.
        unsaid = ("bounds", "unit") if absolute else UNSAID[_in_unit_range(arms) :]
        return tuple(_moving(action, absolute) for action in _dimensions(width, unsaid))
    low, high = (np.broadcast_to(arms[0].get(f"input_{end}", one), count) for end, one in _RANGE)
    units = _units(arms[0], absolute, count)
    motion = [
        _moving(
            ActionDimension(
                f"action_{i}",
                float(low[i]),
                float(high[i]),
                units[i],
                assumed=(*(("bounds",) if absolute else ()), *(() if units[i] else ("unit",))),
            ),
            absolute,
        )
        for i in range(count)
    ]
    gripper = ActionDimension(
        f"action_{count}", -1.0, 1.0, "-1 open, 1 closed", mode="absolute", hold="repeat"
    )
    return (*motion, gripper)


def _dimensions(width: int, unsaid: tuple[Any, ...]) -> tuple[ActionDimension, ...]:
    return tuple(ActionDimension(f"action_{i}", -1.0, 1.0, assumed=unsaid) for i in range(width))


def _moving(action: ActionDimension, absolute: bool) -> ActionDimension:
    return (
        msgspec.structs.replace(action, mode="absolute", hold="repeat")
        if absolute
        else msgspec.structs.replace(action, mode="delta", hold="zero")
    )


def _arms(settings: Any) -> Iterator[Mapping[str, Any]]:
    """The controllers of everything that moves but grippers, in any of the forms."""
    if isinstance(settings, list):
        for part in settings:
            yield from _arms(part)
    elif isinstance(settings, Mapping):
        if isinstance(parts := settings.get("body_parts"), Mapping):
            nested = parts.get("arms")
            yield from _arms(list(nested.values()) if isinstance(nested, Mapping) else [])
            yield from _arms([part for name, part in parts.items() if name != "arms"])
        elif isinstance(settings.get("type"), str) and settings["type"] != "GRIP":
            yield settings


def _is_absolute(arm: Mapping[str, Any]) -> bool:
    if arm["type"] in RATES_OF_MOTION:
        return False
    if "input_type" in arm:
        return bool(arm["input_type"] == "absolute")
    return arm.get("control_delta") is False


def _in_unit_range(arms: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all that the arms take lies in [-1, 1], as robosuite's grippers do: no gains among it."""
    return all(
        arm.get("impedance_mode", "fixed") == "fixed"
        and all((np.asarray(arm.get(f"input_{end}", one)) == one).all() for end, one in _RANGE)
        for arm in arms
    )


def _arm_width(arm: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int:
    if arm["type"] in ARM:
        # Gains that the policy sets come before the motion: then the width is another.
        return ARM[arm["type"]]
    robots = kwargs.get("robots")
    robot = robots[0] if isinstance(robots, list) and robots else robots
    return JOINTS.get(str(robot), MOST_JOINTS)


def _units(arm: Mapping[str, Any], absolute: bool, count: int) -> list[str]:
    """What 1.0 stands for; the output range of robosuite's controllers belongs to their input range."""
    of = JOINT_UNITS.get(arm["type"])
    names = [of] * count if of else (["m"] * 3 + ["rad"] * 3)[:count]
    if absolute:
        return [f"1 {name}" for name in names]
    if "output_max" not in arm:
        return [""] * count
    ratio = np.broadcast_to(
        np.asarray(arm["output_max"], float) / np.asarray(arm.get("input_max", 1.0), float), count
    )
    return [f"{ratio[i]:g} {name}" for i, name in enumerate(names)]
