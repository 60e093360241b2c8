"""What each format says of actions is known, what it does not say is assumed and listed."""

from typing import Any

import pytest

from rql_deploy.contract import ActionDimension
from rql_deploy.motion_names import dimension
from rql_deploy.ogbench_names import plant_of
from rql_deploy.train.data.readers.env_args import control_rate, described_actions
from rql_deploy.train.data.readers.lerobot_names import action_dimensions

DELTA, ABSOLUTE = ("delta", "zero"), ("absolute", "repeat")
OSC = {"type": "OSC_POSE", "output_max": [0.05] * 3 + [0.5] * 3, "input_max": 1, "input_min": -1}
GRIP = {"gripper": {"type": "GRIP"}}


def moves(actions: tuple[ActionDimension, ...]) -> list[tuple[str, str]]:
    return [(a.mode, a.hold) for a in actions]


@pytest.mark.parametrize(
    ("name", "moves_as", "said"),
    [
        ("delta_x", DELTA, True),
        ("arm.delta_yaw", DELTA, True),
        ("x.vel", DELTA, True),
        ("left_shoulder_pan.pos", ABSOLUTE, True),
        ("ee.gripper_pos", ABSOLUTE, True),
        ("ee.wx", ABSOLUTE, True),
        ("gripper", ABSOLUTE, False),
        ("motor_0", ABSOLUTE, False),
        ("deltoid", ABSOLUTE, False),
        ("level", ABSOLUTE, False),
        ("dx", DELTA, True),
        ("d_yaw", DELTA, True),
        ("deltaX", DELTA, True),
        ("left delta-x", DELTA, True),
        ("joint_velocities_0", DELTA, True),
        ("vx", DELTA, True),
        ("base.linear.x", DELTA, True),
        ("ee.vx", DELTA, True),
        ("ee.delta_x", DELTA, True),
        ("ee.mode", ABSOLUTE, False),
        ("index", ABSOLUTE, False),
        ("wx", ABSOLUTE, False),
        ("elbow.torque", ABSOLUTE, False),
    ],
)
def test_names_of_lerobot_s_robots_say_what_moves(name: str, moves_as: tuple[str, str], said: bool) -> None:
    action = dimension(name)
    assert (action.name, action.mode, action.hold) == (name, *moves_as)
    assert action.assumed == (("bounds", "unit") if said else ("bounds", "mode", "hold", "unit"))


@pytest.mark.parametrize(
    ("keys", "names", "moves_as"),
    [
        (("action",), {"delta_pose": ["x", "y"], "hand": ["gripper"]}, [DELTA, DELTA, ABSOLUTE]),
        (("action.delta_pose",), ["x", "y", "gripper"], [DELTA, DELTA, ABSOLUTE]),
        (("action.joint_velocity",), ["a.pos", "b", "c"], [DELTA] * 3),
        (("action.joint", "action.ee_delta"), ["x", "y", "z"], [ABSOLUTE] * 3 + [DELTA] * 3),
    ],
)
def test_words_above_a_name_say_what_moves(
    keys: tuple[str, ...], names: Any, moves_as: list[tuple[str, str]]
) -> None:
    features = {key: {"shape": [3], "names": names} for key in keys}
    assert moves(action_dimensions(features, keys)) == moves_as


def robosuite(configs: Any, **kwargs: Any) -> dict[str, Any]:
    return {"type": 1, "env_kwargs": {"controller_configs": configs, **kwargs}}


FORMS = {
    "1.4": lambda delta: robosuite({**OSC, "control_delta": delta}),
    "1.4, a list": lambda delta: robosuite([{**OSC, "control_delta": delta}]),
    "1.5": lambda delta: robosuite(
        {
            "type": "BASIC",
            "body_parts": {"right": {**OSC, **GRIP, "input_type": "delta" if delta else "absolute"}},
        }
    ),
    "1.5, nested": lambda delta: robosuite(
        {"body_parts": {"arms": {"right": {**OSC, **GRIP, "input_type": "delta" if delta else "absolute"}}}}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_robosuite_s_controllers_say_what_moves_in_every_generation(form: str) -> None:
    arm = described_actions(FORMS[form](True), 7)
    assert moves(arm) == [DELTA] * 6 + [ABSOLUTE]
    assert {(a.low, a.high, a.assumed) for a in arm} == {(-1, 1, ())}
    assert [a.unit for a in arm[2:4]] == ["0.05 m", "0.5 rad"]
    arm = described_actions(FORMS[form](False), 7)
    assert moves(arm) == [ABSOLUTE] * 7
    assert [a.assumed for a in arm] == [("bounds",)] * 6 + [()]
    assert [a.unit for a in arm[2:4]] == ["1 m", "1 rad"]


def test_robosuite_s_inputs_have_the_range_that_the_settings_give() -> None:
    arm = described_actions(robosuite({**OSC, "input_max": 2, "input_min": [-2] * 6}), 7)
    assert {(a.low, a.high) for a in arm[:6]} == {(-2, 2)}
    assert (arm[0].unit, arm[6].low, arm[6].high) == ("0.025 m", -1, 1)
    joints = described_actions(robosuite({"type": "JOINT_VELOCITY"}, robots=["UR5e"]), 7)
    assert moves(joints) == [DELTA] * 6 + [ABSOLUTE]


def test_parts_that_a_single_arm_lacks_say_nothing_of_it() -> None:
    def parts(arm: str) -> dict[str, Any]:
        arms = {side: {**OSC, **GRIP, "input_type": arm} for side in ("right", "left")}
        others = {
            "torso": {"type": "JOINT_POSITION", "input_type": "delta"},
            "base": {"type": "JOINT_VELOCITY"},
        }
        return {"type": "BASIC", "body_parts": {"arms": arms, **others}}

    for robots in ("Panda", ["Panda"]):
        assert moves(described_actions(robosuite(parts("absolute"), robots=robots), 7)) == [ABSOLUTE] * 7
        assert not any(a.assumed for a in described_actions(robosuite(parts("delta"), robots=robots), 7))
    for robots in (["Panda", "Panda"], ["PandaOmron"]):
        unsaid = {a.assumed for a in described_actions(robosuite(parts("absolute"), robots=robots), 14)}
        assert unsaid == {("bounds", "mode", "hold", "unit")}


@pytest.mark.parametrize(
    ("version", "configs", "said"),
    [
        ("1.4.1", {**OSC, "control_delta": False}, True),
        ("1.5.1", {**OSC, "control_delta": False}, False),
        ("1.5.1", {**OSC, "input_type": "absolute"}, True),
        ("1.4.0", {**OSC, "input_type": "absolute"}, False),
        ("1.4.1", {**OSC, "type": "JOINT_POSITION", "control_delta": False}, False),
        ("", {**OSC, "type": "JOINT_POSITION", "control_delta": False}, False),
        ("", {**OSC, "control_delta": False}, True),
        ("1.5.2", {**OSC, "type": "IK_POSE", "control_delta": False}, True),
    ],
)
def test_a_setting_that_robosuite_itself_does_not_heed_is_no_word_on_motion(
    version: str, configs: dict[str, Any], said: bool
) -> None:
    width = 8 if configs["type"] == "JOINT_POSITION" else 7
    arm = described_actions({**robosuite(configs), "env_version": version}, width)
    assert moves(arm) == [ABSOLUTE] * width
    assert ("mode" in arm[0].assumed) is not said


@pytest.mark.parametrize(
    ("settings", "width", "unsaid"),
    [
        ({}, 7, ("bounds", "mode", "hold", "unit")),
        ({"type": 1, "env_kwargs": {}}, 7, ("mode", "hold", "unit")),
        (robosuite([OSC, OSC]), 14, ("mode", "hold", "unit")),
        (robosuite([OSC, {**OSC, "control_delta": False}]), 14, ("bounds", "mode", "hold", "unit")),
        (robosuite([OSC, {**OSC, "control_delta": False}]), 14, ("bounds", "mode", "hold", "unit")),
        (robosuite({**OSC, "impedance_mode": "variable"}), 19, ("bounds", "mode", "hold", "unit")),
        (robosuite({**OSC, "control_delta": False}), 6, ("bounds", "unit")),
    ],
)
def test_what_the_settings_do_not_say_is_assumed(
    settings: dict[str, Any], width: int, unsaid: tuple[str, ...]
) -> None:
    assert {a.assumed for a in described_actions(settings, width)} == {unsaid}


def test_isaac_lab_s_task_names_say_what_moves() -> None:
    name = "Isaac-Stack-Cube-Franka-IK-{}-Mimic-v0"
    assert moves(described_actions({"type": 2, "env_name": name.format("Rel")}, 7)) == [DELTA] * 6 + [
        ABSOLUTE
    ]
    assert moves(described_actions({"type": 2, "env_name": name.format("Abs")}, 8)) == [ABSOLUTE] * 8
    assert control_rate({"sim_args": {"dt": 0.01, "decimation": 5}}) == 20
    assert control_rate({"env_kwargs": {"control_freq": 30}}) == 30
    assert control_rate({}) is None


def test_ogbench_s_families_are_known_and_others_are_not() -> None:
    assert all(not a.assumed for a in plant_of("cube-single-play-v0", 28, 5).actions)
    other = plant_of("mine", 3, 2)
    assert other.rate_assumed
    assert {a.assumed for a in other.actions} == {("bounds", "mode", "hold", "unit")}
