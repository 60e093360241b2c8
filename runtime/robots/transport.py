"""What carries messages between a plant and a robot, and why a topic stays silent.

Two things have this interface: DDS without ROS (`dds.py`), and the node of `clients/ros2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rql_deploy.errors import nearest
from rql_deploy.ros2.topic_map import QoS

MAX_TOPICS = 12
"""How many topics a message lists."""


@dataclass(frozen=True)
class Endpoint:
    """A publisher or subscriber of a topic, as discovery shows it."""

    type: str
    reliability: str
    durability: str


class Publisher(Protocol):
    """Sends messages of one topic."""

    def publish(self, message: Any) -> None:
        """Send one message; does not wait for its reader."""
        ...

    def matched(self) -> int:
        """How many subscribers there are now."""
        ...


class Transport(Protocol):
    """Subscriptions and publishers on one network."""

    def make(self, kind: str) -> Any:
        """An empty message of a type, such as `sensor_msgs/msg/JointState`."""
        ...

    def subscribe(self, topic: str, kind: str, qos: QoS, on_message: Callable[[Any], None]) -> None:
        """Call `on_message` with each message, from a thread of the transport."""
        ...

    def advertise(self, topic: str, kind: str, qos: QoS) -> Publisher:
        """A publisher of the topic."""
        ...

    def publishers(self) -> Mapping[str, Sequence[Endpoint]]:
        """Publishers of others, by topic."""
        ...

    def subscribers(self) -> Mapping[str, Sequence[Endpoint]]:
        """Subscribers of others, by topic."""
        ...

    def incompatible(self, topic: str) -> str | None:
        """The quality of service in which a publisher and our subscription of a topic last differed."""
        ...

    def now(self) -> int:
        """The clock that stamps are made and compared with, in ns."""
        ...

    def where(self) -> str:
        """The network in words, for messages."""
        ...

    def close(self) -> None:
        """Leave the network; nothing is called afterwards."""
        ...


def why_silent(
    topic: str,
    kind: str,
    qos: QoS,
    found: Mapping[str, Sequence[Endpoint]],
    *,
    sends: bool,
    where: str,
    policy: str | None = None,
) -> str:
    """Why there is no connection on a topic of ours, and what to do about it, in one sentence.

    `found` are the endpoints of others by topic: subscribers if we send, else publishers. `policy` is what
    the transport says of a publisher that did not fit.
    """
    verb = "subscribes to" if sends else "publishes"
    others = found.get(topic, ())
    if not others:
        near = nearest(topic, found, cutoff=0.6) or sorted(found)[:MAX_TOPICS]
        hint = f" (there is {', '.join(near)})" if near else ""
        return (
            f"nobody {verb} {topic} on {where}{hint}: start the robot's nodes, and check topic, domain and "
            "network in the map"
        )
    if all(other.type != kind for other in others):
        return f"{topic} has messages of {others[0].type}, the map says {kind}: correct its type"
    offers = [(qos, other) if sends else (other, qos) for other in others if other.type == kind]
    for offered, wanted in offers:
        if offered.reliability == "best_effort" and wanted.reliability == "reliable":
            return _mismatch(topic, "reliability", sends, offered.reliability, "reliable")
        if offered.durability == "volatile" and wanted.durability == "transient_local":
            return _mismatch(topic, "durability", sends, offered.durability, "transient_local")
    if sends:
        return f"the subscriber of {topic} on {where} has not connected yet: set a longer wait in the map"
    if policy is not None:
        return f"{topic} is published with another {policy} than we take: change it at its publisher"
    return f"{topic} is published on {where}, but no message came: start what feeds its publisher"


def _mismatch(topic: str, policy: str, sends: bool, offered: str, wanted: str) -> str:
    """A quality of service that one side offers and the other does not take."""
    if sends:
        return (
            f"the subscriber of {topic} asks for {policy} {wanted}, the map's qos offers {offered}: set "
            f"qos = {{ {policy} = '{wanted}' }}"
        )
    return (
        f"{topic} is published with {policy} {offered}, the map's qos asks for {wanted}: set "
        f"qos = {{ {policy} = '{offered}' }}"
    )
