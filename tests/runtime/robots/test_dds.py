"""A plant over DDS against a simulated robot in a process of its own, well and ill behaved."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import ARRAY
from rql_deploy.ros2.robot import read_robot
from rql_deploy.ros2.topic_map import QoS
from rql_deploy.runtime.robots.dds import DdsTransport
from rql_deploy.runtime.robots.topic_plant import TopicPlant
from tests.helpers.commands import assert_refused, cli, run_cli
from tests.helpers.ros2_robot import SimulatedRobot, simulated_robot

JOINTS = 'topic = "/joint_states", type = "sensor_msgs/msg/JointState"'
NAMES = 'names = ["shoulder", "elbow", "wrist", "finger"]'
OBSERVED = f"observation = {{ {JOINTS}, {NAMES} }}"
COMMANDED = (
    'push = { topic = "/array_command", type = "std_msgs/msg/Float64MultiArray", names = ["action_0", '
    '"action_1"], mode = "delta", low = [-1, -1], high = [1, 1] }'
)


@pytest.fixture(scope="module")
def robot() -> Iterator[SimulatedRobot]:
    with simulated_robot() as started:
        yield started


@pytest.fixture
def write_map(tmp_path: Path, robot: SimulatedRobot):  # type: ignore[no-untyped-def]
    """Writes a map for the robot, with these lines of observation and action."""

    def write(observed: str = OBSERVED, commanded: str = COMMANDED, top: str = "") -> Path:
        path = tmp_path / "robot.toml"
        path.write_text(
            f"rate = 20\ndomain = {robot.domain}\n{top}\n[observation]\n{observed}\n[action]\n{commanded}\n"
        )
        return path

    return write


def connect(path: Path, **options: int) -> TopicPlant:
    topics, description = read_robot(path)
    assert topics.domain is not None
    return TopicPlant(topics, description, DdsTransport(topics.domain, topics.network), **options)


def refusal(path: Path) -> str:
    """What a plant says at the start of an episode."""
    plant = connect(path)
    try:
        with pytest.raises(UserError) as refused:
            plant.reset()
    finally:
        plant.close()
    return str(refused.value)


def test_topics_become_fields_in_the_map_s_order(write_map, robot: SimulatedRobot) -> None:  # type: ignore[no-untyped-def]
    stamped = 'type = "geometry_msgs/msg/PoseStamped"'
    plant = connect(
        write_map(
            f"""{OBSERVED}
lossy = {{ topic = "/lossy", type = "sensor_msgs/msg/JointState", names = ["finger"] }}
hand = {{ topic = "/hand", {stamped} }}
place = {{ topic = "/hand", {stamped}, field = "pose.position" }}
numbers = {{ topic = "/numbers", type = "std_msgs/msg/Float64MultiArray", shape = [2, 2] }}
camera = {{ topic = "/camera", type = "sensor_msgs/msg/Image", shape = [2, 4, 3] }}
small = {{ topic = "/camera/compressed", type = "sensor_msgs/msg/CompressedImage", shape = [2, 4, 3] }}
goal = {{ topic = "/goal", {stamped}, age = "none", qos = {{ durability = "transient_local", reliability = "reliable" }} }}
""",
            top='success = "/success"',
        )
    )
    try:
        plant.reset(0)
        seen = plant.observe()
        assert np.allclose(seen["observation"], [0.0, 0.1, 0.2, 0.3])
        assert np.allclose(seen["lossy"], [0.3])
        assert seen["hand"].tolist() == seen["goal"].tolist() == [1, 2, 3, 0, 0, 0, 1]
        assert seen["place"].tolist() == [1, 2, 3]
        assert seen["numbers"].tolist() == [[4, 3], [2, 1]]
        assert seen["camera"].dtype == seen["small"].dtype == np.uint8
        assert (seen["camera"] == [255, 0, 0]).all() and (seen["small"] == [255, 0, 16]).all()
        # The goal was set an hour ago, and holds; the others are fresh.
        assert plant.observation_age() < 1.0
        assert not plant.success and not plant.finished
    finally:
        plant.close()


def test_actions_become_commands_of_every_type(write_map, robot: SimulatedRobot) -> None:  # type: ignore[no-untyped-def]
    plant = connect(
        write_map(
            commanded=f"""{COMMANDED}
arm = {{ topic = "/trajectory_command", type = "trajectory_msgs/msg/JointTrajectory", {NAMES}, mode = "absolute", rest = "observation" }}
tip = {{ topic = "/joints_command", type = "sensor_msgs/msg/JointState", field = "velocity", names = ["tip"], joints = ["finger"], scale = [20], mode = "delta", frame_id = "tool" }}
base = {{ topic = "/twist_command", type = "geometry_msgs/msg/TwistStamped", field = "twist.angular", mode = "delta" }}
""",
        ),
        horizon=1,
    )
    try:
        plant.reset()
        rest = plant.rest()
        assert np.allclose(rest, [0, 0, 0.0, 0.1, 0.2, 0.3, 0, 0, 0, 0])
        plant.apply(np.arange(10, dtype=np.float32))
        assert plant.finished and not plant.success
        got = robot.commands("array", "trajectory", "joints", "twist")
    finally:
        plant.close()
    assert got["array"]["data"] == [0, 1]
    trajectory = got["trajectory"]
    assert trajectory["joint_names"] == ["shoulder", "elbow", "wrist", "finger"]
    assert trajectory["header"]["stamp"] == {"sec": 0, "nanosec": 0}
    (point,) = trajectory["points"]
    assert point["positions"] == [2, 3, 4, 5] and point["velocities"] == []
    assert point["time_from_start"] == {"sec": 0, "nanosec": 50_000_000}
    assert (got["joints"]["name"], got["joints"]["position"]) == (["finger"], [])
    assert got["joints"]["velocity"] == [120] and got["joints"]["header"]["frame_id"] == "tool"
    assert abs(got["joints"]["header"]["stamp"]["sec"] - time.time()) < 60
    assert got["twist"]["twist"]["angular"] == {"x": 7, "y": 8, "z": 9}
    assert got["twist"]["twist"]["linear"] == {"x": 0, "y": 0, "z": 0}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/joint_states", "/joint_stats", r"nobody publishes /joint_stats on domain \d+ \(loopback\) \(there is /joint_states"),
        ("/joint_states", "/numbers", "/numbers has messages of std_msgs/msg/Float64MultiArray, the map says sensor"),
        ("/joint_states", "/idle", "/idle is published on domain .* but no message came: start what feeds"),
        ("/joint_states", "/slow_clock", r"stamps of /slow_clock are 7\S* s behind this machine's clock: sync"),
        ("/joint_states", "/fast_clock", r"stamps of /fast_clock are \S+ s ahead of this machine's clock: sync"),
        ('"/joint_states"', '"/lossy", qos = { reliability = "reliable" }', "/lossy is published with reliability best_effort, the map's qos asks for reliable: set qos"),
        ('"/joint_states"', '"/idle", qos = { durability = "transient_local" }', "durability volatile, the map's qos asks for transient_local"),
        ('"wrist"', '"wrst"', "topic /joint_states: a JointState lacks the joint 'wrst': it has finger, wrist"),
        ("/array_command", "/arry_command", r"nobody subscribes to /arry_command .*there is /array_command"),
        ("/array_command", "/twist_command", "/twist_command has messages of geometry_msgs/msg/TwistStamped, the"),
        ('mode = "delta"', 'mode = "delta", qos = { reliability = "best_effort" }', "the subscriber of /array_command asks for reliability reliable, the map's qos offers best"),
    ],
)  # fmt: skip
def test_what_does_not_come_is_said_in_a_sentence(write_map, old: str, new: str, words: str) -> None:  # type: ignore[no-untyped-def]
    assert old in OBSERVED + COMMANDED
    path = write_map(OBSERVED.replace(old, new), COMMANDED.replace(old, new), top="wait = 0.7")
    said = refusal(path)
    assert re.search(words, said), said
    assert "\n" not in said
