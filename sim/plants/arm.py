"""The arm of `arm_process` as a plant: absolute joint targets and a reaching task.

`ArmPlant` has the three methods that the author of a real robot writes too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.setpoints import Method

from .arm_process import JOINTS, REST, Arm

ARM_RATE = 500.0
"""Control cycles of the arm per second."""
SETTLE_SECONDS = 5.0
"""How long the arm may take to answer."""
STALE_SECONDS = 0.5
"""Age of the newest state from which on the arm counts as frozen."""
GOAL_SPREAD = 0.25
"""rad: how far from rest, in each joint, the pose lies whose hand position is the goal."""
GOAL_RADIUS = 0.02
"""m: how near to the goal the hand has reached it."""
TARGET_RANGE = 0.6
"""rad: how far from rest a joint target may be."""


def describe_arm(control_rate: float, task: str = "arm:reach") -> PlantDescription:
    """The arm's side of a contract."""
    return PlantDescription(
        task=task,
        fields=(
            ObservationField("joint_position", (7,), "rad"),
            ObservationField("joint_velocity", (7,), "rad/s"),
            ObservationField("hand_position", (3,), "m"),
            ObservationField("goal_position", (3,), "m"),
        ),
        actions=tuple(
            ActionDimension(
                name,
                float(np.float32(REST[i] - TARGET_RANGE)),
                float(np.float32(REST[i] + TARGET_RANGE)),
                "1 rad",
                "JOINT_IMPEDANCE",
                "joint",
                "absolute",
                "repeat",
            )
            for i, name in enumerate(JOINTS)
        ),
        control_rate=control_rate,
    )


class ArmPlant:
    """Starts the arm's process and drives it.

    `apply` sends joint targets `[7]`, rad, and does not wait for the arm.
    """

    def __init__(
        self,
        control_rate: float = 20.0,
        horizon: int = 200,
        arm_rate: float = ARM_RATE,
        method: Method = "linear",
    ):
        """`arm_rate`: its control cycles per second; `method`: how it goes from target to target."""
        self.control_rate, self.horizon = control_rate, horizon
        self._geometry = Arm(arm_rate)
        self._goal = np.zeros(3)
        self._resets, self._ticks, self._success = 0, 0, False
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rql_deploy.sim.plants.arm_process",
                "--rate",
                str(arm_rate),
                "--method",
                method,
            ],
            stdout=subprocess.PIPE,
            text=True,
            # The terminal's Ctrl-C is for the loop, which then still has to hold the arm.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            addresses = json.loads(self._process.stdout.readline())
        except ValueError as error:
            self._process.kill()
            raise UserError(
                "the arm's process did not start: run `python -m rql_deploy.sim.plants.arm_process` to see "
                "why"
            ) from error
        self._context = zmq.Context()
        self._orders, self._states = self._context.socket(zmq.PUSH), self._context.socket(zmq.SUB)
        self._orders.setsockopt(zmq.LINGER, 0)
        self._orders.connect(addresses["orders"])
        # Only the newest state counts.
        self._states.setsockopt(zmq.CONFLATE, 1)
        self._states.setsockopt(zmq.SUBSCRIBE, b"")
        self._states.connect(addresses["states"])
        self._state: dict[str, Any] = {}

    @property
    def success(self) -> bool:
        return self._success

    @property
    def finished(self) -> bool:
        return self._success or self._ticks >= self.horizon

    def reset(self, seed: int | None = None) -> None:
        """Move the arm to its rest pose; the goal is the hand's position in a random pose near it.

        Raises UserError when the arm does not answer.
        """
        pose = REST + np.random.default_rng(seed).uniform(-GOAL_SPREAD, GOAL_SPREAD, 7)
        self._geometry.reset(pose)
        self._goal = np.array(self._geometry.state()["hand"])
        self._resets += 1
        self._ticks, self._success = 0, False
        self._send({"reset": self._resets, "q": REST.tolist()})
        expiry = time.monotonic() + SETTLE_SECONDS
        while self._state.get("resets") != self._resets:
            if time.monotonic() > expiry:
                raise UserError(
                    f"the arm's process did not answer within {SETTLE_SECONDS:g} s: it has ended or the "
                    "machine is overloaded"
                )
            self._read(wait_ms=50)

    def observe(self) -> Mapping[str, NDArray[np.float64]]:
        """The newest state that has arrived.

        Raises UserError when the arm's process has ended or been silent for 0.5 s.
        """
        if self._process.poll() is not None:
            raise UserError("the arm's process has ended")
        # If this process stood still, the newest state arrives in a moment.
        for wait_ms in (0, 50):
            self._read(wait_ms)
            if time.monotonic() - self._state["time"] <= STALE_SECONDS:
                break
        else:
            raise UserError(
                f"the arm's process has been silent for {STALE_SECONDS:g} s: it is frozen or the machine is "
                "overloaded"
            )
        state = self._state
        return {
            "joint_position": np.array(state["q"]),
            "joint_velocity": np.array(state["dq"]),
            "hand_position": np.array(state["hand"]),
            "goal_position": self._goal,
        }

    def apply(self, action: NDArray[np.float32]) -> None:
        """Send joint targets; the arm moves there evenly over one tick."""
        self._send({"q": np.asarray(action, np.float64).tolist(), "seconds": 1.0 / self.control_rate})
        self._ticks += 1
        self._success = (
            self._success or float(np.linalg.norm(np.array(self._state["hand"]) - self._goal)) < GOAL_RADIUS
        )

    def rest(self) -> NDArray[np.float32]:
        """The command that keeps the arm where it is."""
        return np.array(self._state.get("reference", REST), np.float32)

    @property
    def state(self) -> Mapping[str, Any]:
        """The newest state as the arm sent it: joints, hand, reference, cycle, skipped cycles, time."""
        self._read()
        return self._state

    def close(self) -> None:
        """Stop the arm's process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._orders.close()
        self._states.close()
        self._context.term()

    def _send(self, order: Mapping[str, Any]) -> None:
        # Sending never waits; `observe` notices an arm that is gone.
        with contextlib.suppress(zmq.Again):
            self._orders.send(msgspec.msgpack.encode(order), zmq.DONTWAIT)

    def _read(self, wait_ms: int = 0) -> None:
        if self._states.poll(wait_ms):
            self._state = msgspec.msgpack.decode(self._states.recv())
