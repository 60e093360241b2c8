"""`rql-deploy` in LeRobot's environment, with LeRobot's SO-101 arm on a stand-in for its motors' bus.

The arguments are the command line's; the last line printed has the goals that the motors were given. What the
base install does not bring is taken away.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tests.helpers.foreign_libraries import leave_out

EXTRAS = ("mujoco", "robosuite", "minari", "onnxruntime", "onnx", "ogbench", "zarr", "cyclonedds")
GOALS: list[dict[str, float]] = []


class Bus:
    """Motors that are at once where they are told to be."""

    def __init__(self, port: str, motors: Mapping[str, Any], calibration: Any = None):
        self.port, self.motors = port, motors
        self.is_connected, self.is_calibrated = False, True
        self._at = dict.fromkeys(motors, 0.0)

    def connect(self) -> None:
        self.is_connected = True

    def disconnect(self, disable_torque: bool) -> None:
        self.is_connected = False

    @contextlib.contextmanager
    def torque_disabled(self) -> Iterator[None]:
        yield

    def configure_motors(self) -> None: ...

    def write(self, register: str, motor: str, value: int) -> None: ...

    def sync_read(self, register: str) -> dict[str, float]:
        assert register == "Present_Position"
        return dict(self._at)

    def sync_write(self, register: str, goals: Mapping[str, float]) -> None:
        assert register == "Goal_Position"
        self._at.update(goals)
        GOALS.append(dict(goals))


def main() -> None:
    leave_out()
    sys.modules.update(dict.fromkeys(EXTRAS))  # type: ignore[arg-type]
    from lerobot.robots.so_follower import so_follower

    so_follower.FeetechMotorsBus = Bus
    from rql_deploy.cli import main as command_line

    try:
        command_line(sys.argv[1:])
    finally:
        print(json.dumps(GOALS))


if __name__ == "__main__":
    main()
