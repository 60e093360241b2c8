"""What a plant makes of its transport, on one that a test holds in its hands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import JOINT_STATE, blank
from rql_deploy.ros2.robot import read_robot
from rql_deploy.ros2.topic_map import QoS
from rql_deploy.runtime.robots.topic_plant import TopicPlant
from tests.helpers.topic_maps import PUSH, SEEN, write_map

GRIP = {
    "topic": "/grip",
    "type": "std_msgs/msg/Float64MultiArray",
    "names": ["grip"],
    "mode": "absolute",
    "rest_at": [0.04],
}
ARM = {
    "topic": "/arm",
    "type": JOINT_STATE,
    "names": [f"j{i}" for i in range(4)],
    "joints": SEEN["names"],
    "scale": [10, 10, 10, 10],
    "mode": "absolute",
    "rest": "seen",
}


class Hands:
    """A transport whose messages are put in and taken out by hand."""

    def __init__(self, refuses: str = ""):
        self.refuses, self.closed, self.listeners = refuses, False, 1
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.sent: list[tuple[str, Any]] = []

    def make(self, kind: str) -> Any:
        return blank(kind)

    def subscribe(self, topic: str, kind: str, qos: QoS, on_message: Callable[[Any], None]) -> None:
        self.callbacks[topic] = on_message

    def advertise(self, topic: str, kind: str, qos: QoS) -> Any:
        if topic == self.refuses:
            raise UserError("no room")
        return SimpleNamespace(
            publish=lambda message: self.sent.append((topic, message)), matched=lambda: self.listeners
        )

    def publishers(self) -> dict[str, Any]:
        return {}

    subscribers = publishers

    def incompatible(self, topic: str) -> None:
        return None

    def now(self) -> int:
        return 5_000_000_007

    def where(self) -> str:
        return "hands"

    def close(self) -> None:
        self.closed = True

    def joints(self) -> None:
        message = blank(JOINT_STATE)
        message.name, message.position = list(SEEN["names"]), [0.1, 0.2, 0.3, 0.4]
        self.callbacks["/joint_states"](message)


def plant(tmp_path: Path, hands: Hands, **options: Any) -> TopicPlant:
    path = write_map(
        tmp_path,
        {"seen": SEEN},
        {"push": PUSH, "grip": GRIP, "arm": ARM},
        success="/done",
        wait=0.05,
        max_skew=1e6,
    )
    return TopicPlant(*read_robot(path), hands, **options)


def test_commands_start_from_where_the_robot_is(tmp_path: Path) -> None:
    hands = Hands()
    driven = plant(tmp_path, hands)
    hands.joints()
    driven.reset()
    assert np.allclose(driven.rest(), [0, 0, 0.04, 0.01, 0.02, 0.03, 0.04])
    driven.apply(driven.rest())
    (_, push), (_, grip), (_, arm) = hands.sent
    assert (push.data, grip.data) == ([0, 0], pytest.approx([0.04]))
    # To where it is, in the message's numbers, stamped by the transport's clock.
    assert arm.position == pytest.approx([0.1, 0.2, 0.3, 0.4]) and arm.name == SEEN["names"]
    assert (arm.header.stamp.sec, arm.header.stamp.nanosec) == (5, 7)


def test_commands_start_from_joints_by_their_names(tmp_path: Path) -> None:
    hands = Hands()
    names = list(reversed(SEEN["names"]))
    path = write_map(
        tmp_path, {"seen": SEEN}, {"arm": ARM | {"joints": names, "scale": [1, 1, 1, 10]}}, max_skew=1e6
    )
    driven = TopicPlant(*read_robot(path), hands)
    hands.joints()
    driven.reset()
    assert np.allclose(driven.rest(), [0.4, 0.3, 0.2, 0.01])


def test_the_success_topic_ends_an_episode(tmp_path: Path) -> None:
    hands = Hands()
    driven = plant(tmp_path, hands)
    hands.joints()
    hands.callbacks["/done"](SimpleNamespace(data=True))
    driven.reset()
    assert not driven.finished
    hands.callbacks["/done"](SimpleNamespace(data=False))
    assert not driven.finished
    hands.callbacks["/done"](SimpleNamespace(data=True))
    hands.callbacks["/done"](SimpleNamespace(data=False))
    assert driven.success and driven.finished


def test_a_controller_that_ends_is_noticed(tmp_path: Path) -> None:
    hands = Hands()
    driven = plant(tmp_path, hands)
    hands.joints()
    driven.reset()
    driven.observe()
    hands.listeners = 0
    with pytest.raises(
        UserError, match="nobody subscribes to /array_command any more: the robot's controller"
    ):
        driven.observe()
    with pytest.raises(UserError, match="nobody subscribes to /array_command on hands: start the robot's"):
        driven.reset()


def test_a_message_that_cannot_be_read_is_reported_and_the_next_one_taken(tmp_path: Path) -> None:
    hands = Hands()
    driven = plant(tmp_path, hands)
    hands.callbacks["/joint_states"](SimpleNamespace(header=SimpleNamespace(stamp=None)))
    with pytest.raises(UserError, match="topic /joint_states: a message cannot be read"):
        driven.reset()
    hands.joints()
    driven.reset()


def test_a_transport_that_fails_is_closed(tmp_path: Path) -> None:
    hands = Hands(refuses="/grip")
    with pytest.raises(UserError, match="no room"):
        plant(tmp_path, hands)
    assert hands.closed
