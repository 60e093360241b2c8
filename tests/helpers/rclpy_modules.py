"""The modules of ROS that the package's node imports, as stand-ins around `FakeNode`.

As rclpy does, `init` takes over SIGINT unless told not to: a signal then shuts the network down first.
"""

from __future__ import annotations

import signal
import threading
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from tests.helpers.rclpy_stand_in import FakeNode, get_message

NOT_USED = (
    "diagnostic_msgs",
    "diagnostic_msgs.msg",
    "std_srvs",
    "std_srvs.srv",
    "rosidl_runtime_py",
    "rclpy.callback_groups",
    "rclpy.qos",
)


class Context:
    """Whether there is a network."""

    def __init__(self) -> None:
        self.down = threading.Event()

    def init(self, *, signal_handler_options: str = "ALL") -> None:
        if signal_handler_options != "NO":
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self.down.set()
        raise KeyboardInterrupt


def rclpy_modules(joints: tuple[str, ...], command_topic: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Modules by name; `rclpy.made` has the nodes."""
    context, made = Context(), []

    class Node(FakeNode):
        def __init__(self, name: str):
            super().__init__(joints, command_topic)
            made.append(self)

        def declare_parameter(self, name: str, default: Any) -> Any:
            return SimpleNamespace(value=parameters.get(name, default))

        def create_publisher(self, kind: Any, topic: str, profile: Any) -> Any:
            publisher = super().create_publisher(kind, topic, profile)
            send = publisher.publish

            def publish(message: Any) -> None:
                if context.down.is_set():
                    raise RuntimeError("publisher's context is invalid")
                send(message)

            publisher.publish = publish  # type: ignore[method-assign]
            return publisher

        def get_logger(self) -> Any:
            return SimpleNamespace(info=lambda text: None)

        def create_service(self, *_: Any, **__: Any) -> None: ...

        def create_timer(self, *_: Any) -> None: ...

        def destroy_node(self) -> None:
            self.destroy()

    class Executor:
        def __init__(self, num_threads: int):
            self._over = threading.Event()

        def add_node(self, node: Any) -> None: ...

        def spin(self) -> None:
            while not self._over.wait(0.01) and not context.down.is_set():
                pass

        def shutdown(self) -> None:
            self._over.set()

    found: dict[str, Any] = {name: MagicMock() for name in NOT_USED}
    found["rosidl_runtime_py.utilities"] = SimpleNamespace(get_message=get_message)
    found["rclpy"] = module = ModuleType("rclpy")
    module.init, module.try_shutdown, module.made = context.init, context.down.set, made  # type: ignore[attr-defined]
    found["rclpy.node"] = SimpleNamespace(Node=Node)
    found["rclpy.executors"] = SimpleNamespace(
        MultiThreadedExecutor=Executor, ExternalShutdownException=KeyboardInterrupt
    )
    found["rclpy.signals"] = SimpleNamespace(SignalHandlerOptions=SimpleNamespace(NO="NO", ALL="ALL"))
    return found
