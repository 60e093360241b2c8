"""A node with the methods of rclpy's that `clients/ros2` uses, and a robot at its other end, without ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

from rql_deploy.ros2.definitions import blank

PERIOD = 0.01
Reliability = Enum("Reliability", "RELIABLE BEST_EFFORT")
Durability = Enum("Durability", "VOLATILE TRANSIENT_LOCAL")


class Publisher:
    """What a node publishes by."""

    def __init__(self, topic: str, robot: FakeNode):
        self._topic, self._robot = topic, robot

    def publish(self, message: Any) -> None:
        self._robot.commands.append(message)

    def get_subscription_count(self) -> int:
        return int(self._topic == self._robot.command_topic)


class FakeNode:
    """A node; a thread of its own delivers joint states, as an executor would."""

    def __init__(self, joints: tuple[str, ...], command_topic: str):
        self.joints, self.command_topic = joints, command_topic
        self.commands: list[Any] = []
        self.subscribed: dict[str, Callable[[Any], None]] = {}
        self.profiles: dict[str, Any] = {}
        self.silent = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def create_subscription(
        self, kind: Callable[[], Any], topic: str, callback: Callable[[Any], None], profile: Any
    ) -> None:
        self.subscribed[topic], self.profiles[topic] = callback, profile

    def create_publisher(self, kind: Callable[[], Any], topic: str, profile: Any) -> Publisher:
        self.profiles[topic] = profile
        return Publisher(topic, self)

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=time.time_ns()))

    def get_name(self) -> str:
        return "policy"

    def get_namespace(self) -> str:
        return "/"

    def get_topic_names_and_types(self) -> list[tuple[str, list[str]]]:
        return [("/joint_states", ["sensor_msgs/msg/JointState"]), (self.command_topic, ["x"])]

    def get_publishers_info_by_topic(self, topic: str) -> list[Any]:
        return [self._info("sensor_msgs/msg/JointState", "robot")] if topic == "/joint_states" else []

    def get_subscriptions_info_by_topic(self, topic: str) -> list[Any]:
        own = [self._info("x", "policy")]
        other = [self._info("std_msgs/msg/Float64MultiArray", "robot")] if topic == self.command_topic else []
        return own + other

    def _info(self, kind: str, node: str) -> Any:
        profile = SimpleNamespace(reliability=Reliability.RELIABLE, durability=Durability.VOLATILE)
        return SimpleNamespace(node_name=node, node_namespace="/", topic_type=kind, qos_profile=profile)

    def destroy(self) -> None:
        self._end.set()
        self._thread.join()

    def _spin(self) -> None:
        while not self._end.wait(PERIOD):
            callback = self.subscribed.get("/joint_states")
            if callback is None or self.silent:
                continue
            message = blank("sensor_msgs/msg/JointState")
            now = time.time_ns()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
            message.name, message.position = list(self.joints), [0.1 * i for i in range(len(self.joints))]
            callback(message)


def get_message(kind: str) -> Callable[[], Any]:
    """The class of a type: here a function that makes an empty message."""
    return lambda: blank(kind)
