"""The node: parameters, services and diagnostics around `driver.Driver`."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import fields
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosidl_runtime_py.utilities import get_message
from std_srvs.srv import Trigger

from rql_deploy.errors import UserError
from rql_deploy.ros2.topic_map import QoS

from .driver import Driver, Settings
from .transport import NodeTransport


def profile(qos: QoS) -> QoSProfile:
    """A map's quality of service in rclpy's words."""
    return QoSProfile(
        history=HistoryPolicy[qos.history.upper()],
        depth=qos.depth,
        reliability=ReliabilityPolicy[(qos.reliability or "reliable").upper()],
        durability=DurabilityPolicy[qos.durability.upper()],
    )


class PolicyNode(Node):
    """Drives one robot; `~/start`, `~/stop` and `~/reset_fault` are services of std_srvs/Trigger."""

    def __init__(self) -> None:
        super().__init__("policy")
        values = {
            field.name: self.declare_parameter(field.name, field.default).value for field in fields(Settings)
        }
        settings = Settings(**values)
        self.driver = Driver(settings, NodeTransport(self, get_message, profile), self.get_logger().info)
        # A group of their own: while `stop` waits for the loop to hold the robot, messages keep coming.
        group = MutuallyExclusiveCallbackGroup()
        for name in ("start", "stop", "reset_fault"):
            self.create_service(Trigger, f"~/{name}", self._service(name), callback_group=group)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self.create_timer(1.0, self._report)
        if settings.autostart:
            self.driver.start()

    def _service(self, name: str) -> Any:
        def answer(_request: Any, response: Any) -> Any:
            response.success, response.message = getattr(self.driver, name)()
            self.get_logger().info(f"{name}: {response.message}")
            return response

        return answer

    def _report(self) -> None:
        level, message, figures = self.driver.state()
        status = DiagnosticStatus(
            level=bytes([level]),
            name=self.get_fully_qualified_name(),
            message=message,
            values=[KeyValue(key=key, value=str(value)) for key, value in figures.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def main() -> None:
    """Run the node until it is stopped; the robot is held at the end."""
    # At a signal rclpy's own handlers close its publishers, and the robot could not be told to hold.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        node = PolicyNode()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        finally:
            ended.set()

    threading.Thread(target=spin, name="executor", daemon=True).start()
    try:
        ended.wait()
    finally:
        node.driver.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
