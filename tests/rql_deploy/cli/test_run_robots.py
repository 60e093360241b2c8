"""`run ros2:MAP` and `run lerobot:FILE` as a user types them, against a real server and a robot elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.model import Model
from tests.helpers.commands import assert_refused, cli, run_bare
from tests.helpers.lerobot_stand_in import Cart, Looking
from tests.helpers.ros2_robot import SimulatedRobot, simulated_robot
from tests.helpers.servers import serving_model
from tests.helpers.topic_maps import PUSH, SEEN, write_map

PULL = PUSH | {
    "topic": "/trajectory_command",
    "type": "trajectory_msgs/msg/JointTrajectory",
    "field": "velocities",
    "joints": ["shoulder", "elbow"],
    "scale": [20, 10],
}


@pytest.fixture(scope="module")
def robot() -> Iterator[SimulatedRobot]:
    with simulated_robot() as started:
        yield started


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    # The tiny policy is untrained: its actions jump further than its data did.
    path = tmp_path / "limits.toml"
    path.write_text('on_violation = "clamp"\n')
    return path


def run(task: object, endpoint: str, limits: Path, *options: object) -> Any:
    return cli(
        "run", task, "--connect", endpoint, "--real-time", "--episodes", 1, "--limits", limits, *options
    )


def test_a_robot_that_speaks_ros_2_is_driven_by_a_served_policy(
    endpoint: str, robot: SimulatedRobot, limits: Path, tmp_path: Path
) -> None:
    path = write_map(tmp_path, {"observation": SEEN}, {"pull": PULL}, domain=robot.domain)
    log = tmp_path / "ticks.jsonl"
    # With what is installed on a robot.
    command = ("run", f"ros2:{path}", "--connect", endpoint, "--real-time", "--episodes", 1, "--json")
    result = run_bare(*command, "--limits", limits, "--no-fault-latch", "--horizon", 15, "--log", log)
    assert result.returncode == 0, result.stderr
    (figures,) = json.loads(result.stdout)["real_time"]
    assert figures["ticks"] >= 15 and figures["decisions"] >= 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    sent = [line["command"] for line in lines if line.get("fresh")]
    assert sent
    # The ages of its messages are part of the observation's.
    assert all(line["age"] > 0 for line in lines if line.get("fresh"))
    (point,) = robot.commands("trajectory")["trajectory"]["points"]
    commanded = [line["command"] for line in lines if "command" in line and line["kind"] != "standby"]
    assert np.allclose(np.multiply(commanded[0], [20, 10]), point["velocities"], rtol=1e-6)


def test_a_robot_that_falls_silent_is_held_and_ends_the_run(
    endpoint: str, robot: SimulatedRobot, limits: Path, tmp_path: Path
) -> None:
    path = write_map(tmp_path, {"observation": SEEN}, {"push": PUSH}, domain=robot.domain)
    log = tmp_path / "ticks.jsonl"

    def freeze() -> None:
        robot.commands("array")
        with robot.frozen():
            time.sleep(3.0)

    thread = threading.Thread(target=freeze)
    thread.start()
    result = run(f"ros2:{path}", endpoint, limits, "--no-fault-latch", "--duration", 60, "--log", log)
    thread.join()
    assert_refused(
        result,
        "the plant failed at tick",
        "no message has come on /joint_states for 1",
        "publisher has stopped",
    )
    # Before that, its observations were too old to act on.
    kinds = [json.loads(line).get("kind") for line in log.read_text().splitlines()]
    assert "observation too old" in kinds


def test_a_robot_that_is_not_there_is_said_with_status_2(
    endpoint: str, robot: SimulatedRobot, limits: Path, tmp_path: Path
) -> None:
    observed = SEEN | {"topic": "/jont_states"}
    path = write_map(tmp_path, {"observation": observed}, {"push": PUSH}, domain=robot.domain, wait=1.5)
    result = run(f"ros2:{path}", endpoint, limits)
    assert_refused(
        result, "the plant could not be reset (nobody publishes /jont_states", "there is /joint_states"
    )


@pytest.mark.parametrize(
    ("seen", "push", "options", "words"),
    [
        ({}, {"names": ["action_0", "action_x"]}, (), "action 'action_1' has name 'action_x'"),
        ({"names": ["a", "b"]}, {}, (), "observation field 'observation' has shape [2] instead of [4]"),
        ({}, {"mode": None}, (), "robot.toml.action.push does not say what moves: write mode"),
        ({}, {"type": "x/msg/Y"}, (), "has the type 'x/msg/Y', which is not known here: write one of std_m"),
        ({"topic": "joint_states"}, {}, (), "'joint_states', which is not the name of a topic"),
        ({"tpye": "x"}, {}, (), "unknown entry 'tpye': did you mean type"),
        ({"qos": {"reliability": "sure"}}, {}, (), "reliability should be 'reliable' or 'best_effort'"),
        ({}, {"scale": [0, 1]}, (), "has the scale [0.0, 1.0]: give a factor other than 0"),
        ({}, {}, ("--control-rate", 10), "--control-rate does not apply to ros2:"),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    seen: dict[str, Any],
    push: dict[str, Any],
    options: tuple[object, ...],
    words: str,
    endpoint: str,
    limits: Path,
    tmp_path: Path,
) -> None:
    push = {key: value for key, value in (PUSH | push).items() if value is not None}
    path = write_map(tmp_path, {"observation": SEEN | seen}, {"push": push}, domain=231)
    assert_refused(run(f"ros2:{path}", endpoint, limits, *options), words)


def test_a_robot_needs_a_clock_that_does_not_wait_and_its_file_before_a_server() -> None:
    nobody = "tcp://127.0.0.1:1"
    for task in ("ros2:robot.toml", "lerobot:robot.toml"):
        assert_refused(cli("run", task, "--connect", nobody), "add --real-time")
        assert_refused(cli("run", task, "--connect", nobody, "--real-time"), "robot.toml cannot be read")


class NamedModel(Model):
    """The test bundle, whose actions are changes by their names."""

    def __init__(self, bundle: Bundle):
        super().__init__(bundle)
        plant = self.contract.plant
        actions = tuple(msgspec.structs.replace(a, name=f"delta_{i}") for i, a in enumerate(plant.actions))
        self.contract = msgspec.structs.replace(
            self.contract, plant=msgspec.structs.replace(plant, actions=actions)
        )


def robot_file(folder: Path, robot: str, fields: str = '{ observation = ["a", "b", "c", "d"] }') -> Path:
    """Settings of a LeRobot robot at 20 Hz."""
    path = folder / "arm.toml"
    path.write_text(f'robot = "{robot}"\nrate = 20\nconfig = {{ port = "here" }}\nfields = {fields}\n')
    return path


def test_a_robot_of_lerobot_is_driven_by_a_served_policy(
    bundle: Path, endpoint: str, limits: Path, tmp_path: Path
) -> None:
    path = robot_file(tmp_path, "tests.helpers.lerobot_stand_in:Cart")
    with serving_model(NamedModel(Bundle.open(bundle))) as address:
        result = run(f"lerobot:{path}", address, limits, "--no-fault-latch", "--horizon", 15, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["real_time"][0]["ticks"] >= 15
    sent = Cart.made[-1].sent
    assert len(sent) >= 15 and set(sent[0]) == {"delta_0", "delta_1"}
    assert not Cart.made[-1].is_connected
    # A policy for other actions is refused by their names before anything moves.
    assert_refused(run(f"lerobot:{path}", endpoint, limits), "action 'action_0' has name 'delta_0'")
    assert Cart.made[-1].sent == []


class Unplugged(Cart):
    """Its cable comes off while it moves."""

    def disconnect(self) -> None:
        raise ConnectionError("no such device")


def test_a_robot_that_is_gone_when_it_is_closed_costs_nothing_that_was_played(
    bundle: Path, limits: Path, tmp_path: Path
) -> None:
    path = robot_file(tmp_path, f"{__name__}:Unplugged")
    with serving_model(NamedModel(Bundle.open(bundle))) as address:
        result = run(f"lerobot:{path}", address, limits, "--no-fault-latch", "--horizon", 3, "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["real_time"]) == 1
    assert "the plant could not be closed (ConnectionError: no such device)" in result.stderr


class LookingModel(Model):
    """The picture bundle, whose camera is LeRobot's `front`, of twice the picture's size."""

    camera = "observation.images.front"

    def __init__(self, bundle: Bundle):
        super().__init__(bundle)
        plant = self.contract.plant
        (image,) = plant.images
        image = msgspec.structs.replace(image, name=self.camera, camera_height=24, camera_width=32)
        self.contract = msgspec.structs.replace(
            self.contract, plant=msgspec.structs.replace(plant, images=(image,))
        )

    def encode(self, fields: Any) -> Any:
        return super().encode({"camera" if name == self.camera else name: v for name, v in fields.items()})


def test_a_robot_s_cameras_are_those_of_a_policy_that_looks(
    picture_bundle: Path, limits: Path, tmp_path: Path
) -> None:
    fields = '{ position = ["x", "y", "z"], opening = ["gripper"] }'
    path = robot_file(tmp_path, "tests.helpers.lerobot_stand_in:Looking", fields)
    with serving_model(LookingModel(Bundle.open(picture_bundle))) as address:
        result = run(f"lerobot:{path}", address, limits, "--no-fault-latch", "--horizon", 15, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["real_time"][0]["decisions"] >= 1
    assert len(Looking.made[-1].sent) >= 15


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tests.helpers.lerobot_stand_in", "broken_robot", "cannot be loaded (no bus here)"),
        (
            ":Cart",
            ":Carts",
            "has no attribute 'Carts'): write MODULE:CLASS, and run in LeRobot's environment",
        ),
        ("tests.helpers.lerobot_stand_in", "no.such", "cannot be loaded (No module named 'no')"),
        ("port", "prt", "arm.toml.config does not fit Cart ("),
        ("rate = 20", "rate = 0", "arm.toml.rate should be a finite number, not 0"),
    ],
)
def test_files_that_do_not_fit_a_robot_are_refused(
    old: str,
    new: str,
    words: str,
    endpoint: str,
    limits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_robot.py").write_text('raise RuntimeError("no bus here")\n')
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "arm.toml"
    text = 'robot = "tests.helpers.lerobot_stand_in:Cart"\nrate = 20\nconfig = { port = "here" }\n'
    path.write_text(text.replace(old, new))
    assert_refused(run(f"lerobot:{path}", endpoint, limits), words)
