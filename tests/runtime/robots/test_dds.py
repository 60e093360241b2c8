"""A plant over DDS against a simulated robot in a process of its own, well and ill behaved."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.ros2.robot import read_robot
from rql_deploy.runtime.robots.dds import DdsTransport
from rql_deploy.runtime.robots.topic_plant import TopicPlant
from tests.helpers.commands import wait_for
from tests.helpers.ros2_robot import JOINTS, SimulatedRobot, simulated_robot
from tests.helpers.topic_maps import ARRAY, JOINT_STATE, POSE, PUSH, SEEN, write_map


@pytest.fixture(scope="module")
def robot() -> Iterator[SimulatedRobot]:
    with simulated_robot() as started:
        yield started


def connect(path: Path, **options: int) -> TopicPlant:
    topics, description = read_robot(path)
    assert topics.domain is not None
    return TopicPlant(topics, description, DdsTransport(topics.domain, topics.network), **options)


def test_topics_become_fields(robot: SimulatedRobot, tmp_path: Path) -> None:
    latched = {"durability": "transient_local", "reliability": "reliable"}
    observation = {
        "joints": SEEN,
        "lossy": {"topic": "/lossy", "type": JOINT_STATE, "names": ["finger"]},
        "hand": {"topic": "/hand", "type": POSE},
        "place": {"topic": "/hand", "type": POSE, "field": "pose.position"},
        "numbers": {"topic": "/numbers", "type": ARRAY, "shape": [2, 2]},
        "camera": {"topic": "/camera", "type": "sensor_msgs/msg/Image", "shape": [2, 4, 3]},
        "small": {
            "topic": "/camera/compressed",
            "type": "sensor_msgs/msg/CompressedImage",
            "shape": [2, 4, 3],
        },
        "goal": {"topic": "/goal", "type": POSE, "age": "none", "qos": latched},
    }
    path = write_map(tmp_path, observation, {"push": PUSH}, domain=robot.domain, success="/success")
    plant = connect(path)
    try:
        plant.reset(0)
        seen = plant.observe()
        assert np.allclose(seen["joints"], [0.0, 0.1, 0.2, 0.3])
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


def test_actions_become_commands_of_every_type(robot: SimulatedRobot, tmp_path: Path) -> None:
    commands = {
        "push": PUSH,
        "arm": {
            "topic": "/trajectory_command",
            "type": "trajectory_msgs/msg/JointTrajectory",
            "names": list(JOINTS),
            "mode": "absolute",
            "rest": "joints",
        },
        "tip": {
            "topic": "/joints_command",
            "type": JOINT_STATE,
            "field": "velocity",
            "names": ["tip"],
            "joints": ["finger"],
            "scale": [20],
            "mode": "delta",
            "frame_id": "tool",
        },
        "base": {
            "topic": "/twist_command",
            "type": "geometry_msgs/msg/TwistStamped",
            "field": "twist.angular",
            "mode": "delta",
        },
    }
    plant = connect(write_map(tmp_path, {"joints": SEEN}, commands, domain=robot.domain), horizon=1)
    try:
        plant.reset()
        assert np.allclose(plant.rest(), [0, 0, 0.0, 0.1, 0.2, 0.3, 0, 0, 0, 0])
        plant.apply(np.arange(10, dtype=np.float32))
        assert plant.finished and not plant.success
        got = robot.commands("array", "trajectory", "joints", "twist")
    finally:
        plant.close()
    assert got["array"]["data"] == [0, 1]
    trajectory = got["trajectory"]
    assert trajectory["joint_names"] == list(JOINTS)
    # Stamp 0: it starts when it arrives.
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
    ("observed", "commanded", "words"),
    [
        (
            {"topic": "/joint_stats"},
            {},
            r"nobody publishes /joint_stats on domain \d+ \(loopback\) \(there is /joint_states",
        ),
        (
            {"topic": "/numbers"},
            {},
            f"/numbers has messages of {ARRAY}, the map says {JOINT_STATE}: correct its type",
        ),
        ({"topic": "/slow_clock"}, {}, r"stamps of /slow_clock are [78]\S* s behind this machine's clock: "),
        (
            {"topic": "/lossy", "qos": {"reliability": "reliable"}},
            {},
            "/lossy is published with reliability best_effort, the map's qos asks for reliable: set qos",
        ),
        (
            {},
            {"qos": {"reliability": "best_effort"}},
            "the subscriber of /array_command asks for reliability reliable, the map's qos offers best_",
        ),
    ],
)
def test_what_does_not_come_is_said_in_a_sentence(
    observed: dict[str, Any], commanded: dict[str, Any], words: str, robot: SimulatedRobot, tmp_path: Path
) -> None:
    path = write_map(
        tmp_path, {"joints": SEEN | observed}, {"push": PUSH | commanded}, domain=robot.domain, wait=0.7
    )
    plant = connect(path)
    said: list[str] = []

    def refused_so() -> bool:
        with pytest.raises(UserError) as refused:
            plant.reset()
        said.append(str(refused.value))
        return re.search(words, said[-1]) is not None

    try:
        # At first, because little is known of the network.
        wait_for(refused_so, 20.0)
    except AssertionError as error:
        raise AssertionError(said[-1]) from error
    finally:
        plant.close()
    assert "\n" not in said[-1]


def test_stamps_of_another_clock_may_be_left_out_of_account(robot: SimulatedRobot, tmp_path: Path) -> None:
    observed = SEEN | {"topic": "/slow_clock", "age": "arrival"}
    plant = connect(write_map(tmp_path, {"joints": observed}, {"push": PUSH}, domain=robot.domain))
    try:
        plant.reset()
        plant.observe()
        assert plant.observation_age() < 1.0
    finally:
        plant.close()


def test_endpoints_that_have_left_are_not_listed(
    robot: SimulatedRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DdsTransport(robot.domain) as transport:
        alive, disposed = 16, 32
        samples = [
            SimpleNamespace(
                topic_name=name, participant_key=None, sample_info=SimpleNamespace(instance_state=state)
            )
            for name, state in ((None, disposed), ("rt/x", disposed), (None, alive), ("rq/x", alive))
        ]
        reader = SimpleNamespace(read=lambda most: samples)
        monkeypatch.setattr(transport, "_publications", reader)
        assert transport.publishers() == {}


def test_a_process_joins_a_domain_once_at_a_time(robot: SimulatedRobot) -> None:
    already = pytest.raises(UserError, match=r"is on DDS domain \d+ already: close that plant first")
    with DdsTransport(robot.domain), already:
        DdsTransport(robot.domain)
    DdsTransport(robot.domain).close()
    with pytest.raises(UserError, match=r"cannot use domain \d+ \(nowhere0\) .*: check network in the map"):
        DdsTransport(robot.domain, "nowhere0")
