"""A node of rclpy as what carries messages between a plant and a robot.

rclpy itself is not imported: the node, the message classes and the QoS profiles are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rql_deploy.ros2.topic_map import QoS
from rql_deploy.runtime.robots.transport import Endpoint


class NodeTransport:
    """Subscriptions and publishers of one node."""

    def __init__(
        self, node: Any, get_message: Callable[[str], Callable[[], Any]], make_profile: Callable[[QoS], Any]
    ):
        """
        Args:
            node: of rclpy.
            get_message: the class of a type, such as `rosidl_runtime_py.utilities.get_message`.
            make_profile: the QoS profile for a map's words.
        """
        self._node, self._get_message, self._make_profile = node, get_message, make_profile
        self._closed = False

    def make(self, kind: str) -> Any:
        """An empty message of a type."""
        return self._get_message(kind)()

    def subscribe(self, topic: str, kind: str, qos: QoS, on_message: Callable[[Any], None]) -> None:
        """Call `on_message` with each message, from the executor's thread."""

        def deliver(message: Any) -> None:
            if not self._closed:
                on_message(message)

        self._node.create_subscription(self._get_message(kind), topic, deliver, self._make_profile(qos))

    def advertise(self, topic: str, kind: str, qos: QoS) -> NodePublisher:
        """A publisher of the topic."""
        return NodePublisher(
            self._node.create_publisher(self._get_message(kind), topic, self._make_profile(qos))
        )

    def publishers(self) -> Mapping[str, Sequence[Endpoint]]:
        """Publishers of other nodes, by topic."""
        return self._endpoints(self._node.get_publishers_info_by_topic)

    def subscribers(self) -> Mapping[str, Sequence[Endpoint]]:
        """Subscribers of other nodes, by topic."""
        return self._endpoints(self._node.get_subscriptions_info_by_topic)

    def incompatible(self, topic: str) -> str | None:
        """rclpy warns of other policies than those that `publishers` shows."""
        return None

    def now(self) -> int:
        """The node's clock in ns: simulated time, where the node uses it."""
        return int(self._node.get_clock().now().nanoseconds)

    def where(self) -> str:
        """The node's name."""
        return f"the network of {self._node.get_name()}"

    def close(self) -> None:
        """Hand out no more messages. The node is left to its owner."""
        self._closed = True

    def _endpoints(self, found: Callable[[str], Sequence[Any]]) -> Mapping[str, Sequence[Endpoint]]:
        own = (self._node.get_name(), self._node.get_namespace())
        endpoints: dict[str, list[Endpoint]] = {}
        for topic, _ in self._node.get_topic_names_and_types():
            for info in found(topic):
                if (info.node_name, info.node_namespace) != own:
                    profile = info.qos_profile
                    endpoints.setdefault(topic, []).append(
                        Endpoint(
                            info.topic_type,
                            profile.reliability.name.lower(),
                            profile.durability.name.lower(),
                        )
                    )
        return endpoints


class NodePublisher:
    """Sends messages of one topic."""

    def __init__(self, publisher: Any):
        self._publisher = publisher

    def publish(self, message: Any) -> None:
        """Send one message."""
        self._publisher.publish(message)

    def matched(self) -> int:
        """How many subscribers there are now."""
        return int(self._publisher.get_subscription_count())
