"""What a robot's map must say, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rql_deploy.errors import UserError
from rql_deploy.ros2.robot import domain_of, read_robot
from tests.helpers.topic_maps import ARRAY, JOINT_STATE, POSE, PUSH, SEEN, write_map

TWIST = "geometry_msgs/msg/TwistStamped"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
ARM = {"topic": "/arm", "type": TRAJECTORY, "names": ["a"], "mode": "absolute", "rest_at": [0.5]}


def described(
    tmp_path: Path, seen: dict[str, Any] | None = None, command: dict[str, Any] | None = None
) -> Any:
    return read_robot(write_map(tmp_path, {"seen": seen or SEEN}, {"part": command or PUSH}, domain=3))


def test_a_map_describes_a_plant(tmp_path: Path) -> None:
    path = write_map(
        tmp_path,
        {
            "joints": SEEN | {"unit": "rad"},
            "turn": {"topic": "/hand", "type": POSE, "field": "pose.orientation"},
            "height": {"topic": "/hand", "type": POSE, "field": "pose.position.z"},
            "camera": {"topic": "/eye", "type": "sensor_msgs/msg/CompressedImage", "shape": [8, 6, 1]},
        },
        {
            "arm": ARM | {"low": [-1], "high": [1], "unit": "1 rad", "controller": "JOINT_POSITION"},
            "base": {"topic": "/base", "type": TWIST, "mode": "delta", "hold": "zero"},
        },
        task="pick",
    )
    _, plant = read_robot(path)
    assert (plant.task, plant.control_rate) == ("pick", 20)
    assert [(f.name, f.shape, f.unit, f.dtype) for f in plant.fields] == [
        ("joints", (4,), "rad", "float32"),
        ("turn", (4,), "", "float32"),
        ("height", (1,), "", "float32"),
        ("camera", (8, 6, 1), "", "uint8"),
    ]
    arm, *base = plant.actions
    assert (arm.name, arm.low, arm.mode, arm.hold, arm.assumed) == ("a", -1.0, "absolute", "repeat", ())
    assert [a.name for a in base] == [f"base_{i}" for i in range(6)]
    assert {a.assumed for a in base} == {("bounds", "unit")}


@pytest.mark.parametrize(
    ("seen", "command", "words"),
    [
        ({"names": []}, {}, "robot.toml.observation.seen does not say which joints"),
        ({"type": ""}, {}, "observation.seen has no type: write one of sensor_msgs/msg/JointState"),
        ({"type": ARRAY, "names": []}, {}, "does not say how many numbers the message has"),
        ({"shape": [3]}, {}, r"has shape \[3\], its messages 4 numbers"),
        ({"type": "sensor_msgs/msg/Image"}, {}, "has no shape of pictures"),
        ({"type": POSE, "field": "pose.place"}, {}, "has no 'pose.place': it has position, orientation"),
        ({"topic": "/a//b"}, {}, "'/a//b', which is not the name of a topic"),
        ({}, ARM | {"rest_at": []}, "has 1 targets and starts from 0 numbers: name the field that measures"),
        ({}, ARM | {"rest": "sen", "rest_at": []}, "rest names 'sen', the fields are seen"),
        ({}, ARM | {"rest": "seen"}, "has 1 targets and starts from 4 numbers"),
        ({}, ARM | {"mode": "delta"}, "would send changes as positions: write field = 'velocities'"),
        ({}, ARM | {"field": "effort"}, "has the field 'effort': write one of positions, velocities"),
        ({}, ARM | {"names": []}, "does not say which joints: list the policy's actions in names"),
        ({}, PUSH | {"field": "layout"}, "has the field 'layout': write one of data"),
        ({}, PUSH | {"joints": ["a"]}, "has 2 numbers: give as many joints and scales"),
        ({}, PUSH | {"low": [0], "high": [1]}, "2 numbers, its map 2 names and 1 bounds"),
        ({}, {"topic": "/t", "type": TWIST, "mode": "delta", "names": ["x"]}, "6 numbers"),
        ({}, {"topic": "/t", "type": TWIST, "mode": "absolute"}, "go on at its last velocity in a hold"),
        ({}, ARM | {"mode": "delta", "field": "velocities", "hold": "repeat"}, "go on at its last velocity"),
        ({}, ARM | {"names": ["a", "b"], "joints": ["c", "c"]}, "has a joint twice"),
        ({}, PUSH | {"low": [1, -1], "high": [-1, 1]}, "a low bound that is not below its high bound"),
        (
            {"names": ["a", "b"]},
            ARM | {"names": ["b", "c"], "rest": "seen"},
            "which has the joints a, b: name",
        ),
    ],
)
def test_what_a_map_leaves_open_is_asked_for(
    seen: dict[str, Any], command: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        described(tmp_path, SEEN | seen, command)


def test_two_actions_on_one_topic_would_replace_each_other(tmp_path: Path) -> None:
    path = write_map(tmp_path, {"seen": SEEN}, {"one": PUSH, "other": PUSH | {"names": ["c", "d"]}})
    with pytest.raises(UserError, match="sends several actions on /array_command"):
        read_robot(path)


def test_the_domain_is_the_map_s_or_the_environment_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, _ = described(tmp_path)
    free, _ = read_robot(write_map(tmp_path, {"seen": SEEN}, {"part": PUSH}))
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert (domain_of(topics), domain_of(free)) == (3, 42)
    monkeypatch.delenv("ROS_DOMAIN_ID")
    assert domain_of(free) == 0
    for wrong in ("233", "x", "-1"):
        monkeypatch.setenv("ROS_DOMAIN_ID", wrong)
        with pytest.raises(UserError, match=f"ROS_DOMAIN_ID is '{wrong}': set it to a number from 0 to 232"):
            domain_of(free)


def test_the_type_of_a_joint_state_is_read_from_its_joints(tmp_path: Path) -> None:
    _, plant = described(tmp_path, SEEN | {"type": JOINT_STATE, "shape": [2, 2]})
    assert plant.fields[0].shape == (2, 2)
