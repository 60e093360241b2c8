"""A simulated arm with a clock of its own: MuJoCo physics under joint impedance control, 500 times a second,
in its own process.

    python -m rql_deploy.sim.plants.arm_process --rate 500

It is to a control loop what a real arm's controller is: joint targets come in over a socket whenever they
come, are interpolated, and turned into torques at a rate that no policy could keep; nobody waits for anybody.
The arm is robosuite's Panda (torque motors on seven joints).

The law is joint impedance with gravity compensation: torque = stiffness (reference - position) - damping
velocity + bias, where the bias (gravity, Coriolis and centrifugal forces) is what MuJoCo computes, as
libfranka's example adds the robot's own estimate of it.

Sockets on loopback, messages in msgpack: targets in (PULL), states out (PUB, one a cycle). The first line on
standard output is JSON with both addresses. It ends when the process that started it does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any, get_args

import msgspec
import mujoco
import numpy as np
import zmq
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, PlantDescription
from rql_deploy.setpoints import Method, Setpoints

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
REST = np.array([0.0, 0.196, 0.0, -2.618, 0.0, 2.942, 0.785])
"""rad; robosuite's initial pose of the Panda."""
STIFFNESS = np.array([600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0])
"""Nm/rad."""
DAMPING = np.array([50.0, 50.0, 50.0, 50.0, 30.0, 25.0, 15.0])
"""Nms/rad; stiffness and damping are those of libfranka's joint_impedance_control example."""
PHYSICS_STEP = 0.001
MAX_MESSAGE_BYTES = 4096
HAND = "right_hand"


def model_path() -> Path:
    """The Panda's MJCF in the installed robosuite, found without importing it."""
    spec = importlib.util.find_spec("robosuite")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "models" / "assets" / "robots" / "panda" / "robot.xml"


class Arm:
    """Physics, impedance control and set-point interpolation, one control cycle at a time."""

    def __init__(self, rate: float, method: Method = "linear"):
        """`rate`: control cycles per second; `method`: how the reference goes from target to target."""
        self.method: Method = method
        self.model = mujoco.MjModel.from_xml_path(str(model_path()))
        # A free-standing arm touches nothing; its self-contacts would only cost time.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        self.model.opt.timestep = PHYSICS_STEP
        self.data = mujoco.MjData(self.model)
        self.period = 1.0 / rate
        self.substeps = max(1, round(self.period / PHYSICS_STEP))
        self.limits = self.model.jnt_range[:7].copy()
        self.torque_limits = self.model.actuator_ctrlrange[:7].copy()
        self.reset(REST)

    def reset(self, position: NDArray[np.float64]) -> None:
        """Stand still at `position` [7], rad."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = position
        self.reference = np.array(position, np.float64)
        self._setpoints = self._interpolation(1)
        mujoco.mj_forward(self.model, self.data)

    def aim(self, target: NDArray[np.float64], seconds: float) -> None:
        """Move the reference to `target` [7], rad, over `seconds`; joint limits are the arm's own and always
        kept.
        """
        cycles = max(1, round(seconds / self.period))
        if cycles != self._cycles:
            self._setpoints = self._interpolation(cycles)
        self._setpoints.command(np.clip(target, self.limits[:, 0], self.limits[:, 1]))

    def _interpolation(self, cycles: int) -> Setpoints:
        """From the present reference, for targets that are `cycles` apart."""
        self._cycles = cycles
        joints = tuple(
            ActionDimension(name, low, high, "1 rad", "JOINT_IMPEDANCE", "joint", "absolute", "repeat")
            for name, (low, high) in zip(JOINTS, self.limits.tolist(), strict=True)
        )
        plant = PlantDescription("arm", (), joints, 1.0 / (cycles * self.period))
        return Setpoints(plant, 1.0 / self.period, self.reference, method=self.method)

    def cycle(self) -> None:
        """One control cycle."""
        self.reference = self._setpoints.next()
        for _ in range(self.substeps):
            error = self.reference - self.data.qpos[:7]
            torque = STIFFNESS * error - DAMPING * self.data.qvel[:7] + self.data.qfrc_bias[:7]
            self.data.ctrl[:7] = np.clip(torque, self.torque_limits[:, 0], self.torque_limits[:, 1])
            mujoco.mj_step(self.model, self.data)

    def state(self) -> dict[str, Any]:
        """What the arm measures: position and velocity of the joints, where the hand is, where the
        reference is.
        """
        return {
            "q": self.data.qpos[:7].tolist(),
            "dq": self.data.qvel[:7].tolist(),
            "hand": self.data.body(HAND).xpos.tolist(),
            "reference": self.reference.tolist(),
        }


def handle_message(arm: Arm, message: bytes) -> int | None:
    """Obey one message; returns the number of the reset it asks for.

    Anything else is ignored, as a controller must.
    """
    try:
        order = msgspec.msgpack.decode(message)
        position = np.array(order["q"], np.float64)
        seconds = float(order.get("seconds", 0.0))
        if position.shape != (7,) or not np.isfinite(position).all() or not 0.0 <= seconds <= 10.0:
            return None
        if "reset" in order:
            arm.reset(np.clip(position, arm.limits[:, 0], arm.limits[:, 1]))
            return int(order["reset"])
        arm.aim(position, seconds)
    except (ValueError, TypeError, KeyError, AttributeError, msgspec.DecodeError):
        pass
    return None


def run(rate: float, method: Method = "linear") -> None:
    """Serve one arm until the parent process ends."""
    arm = Arm(rate, method)
    context = zmq.Context()
    orders, states = context.socket(zmq.PULL), context.socket(zmq.PUB)
    for socket in (orders, states):
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    states.setsockopt(zmq.SNDHWM, 10)
    addresses = {
        name: f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        for name, socket in (("orders", orders), ("states", states))
    }
    print(json.dumps(addresses), flush=True)
    parent, resets, cycles, skipped = os.getppid(), 0, 0, 0
    start = time.monotonic()
    while os.getppid() == parent:
        while orders.poll(0):
            resets = handle_message(arm, orders.recv()) or resets
        arm.cycle()
        cycles += 1
        states.send(
            msgspec.msgpack.encode(
                {
                    "cycle": cycles,
                    "skipped": skipped,
                    "resets": resets,
                    "time": time.monotonic(),
                    **arm.state(),
                }
            )
        )
        late = time.monotonic() - start - (cycles + skipped) * arm.period
        if late < 0:
            time.sleep(-late)
        elif late > arm.period:
            # Simulated time may fall behind the clock of a busy machine; it does not catch up.
            skipped += int(late / arm.period)


def main() -> None:
    """Run the arm until the parent process is gone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=500.0, help="control cycles per second, 500 to 1000")
    parser.add_argument("--method", choices=get_args(Method), default="linear", help="from target to target")
    options = parser.parse_args()
    run(options.rate, options.method)


if __name__ == "__main__":
    main()
