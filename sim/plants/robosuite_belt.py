"""robosuite:BeltLift: Lift with a cube that travels on a belt, so that waiting costs something.

The belt is a long slab that slides over the table at constant speed and carries the cube by friction. Its
speed is drawn for each episode; after some seconds the cube is out of reach.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
from robosuite.environments.manipulation.lift import Lift
from robosuite.utils.observables import Observable, sensor

SPEED = (0.08, 0.16)
"""Metres per second, along y: least and greatest."""
START = -0.22
"""y of the belt's middle where the cube is put on it, in metres; Lift's own range of places is about that."""
THICKNESS = 0.01
LIFTED = 0.04
"""Metres of the cube's centre above the belt that are success, as in Lift above the table."""
SIZE = f"0.1 3 {THICKNESS / 2}"
BELT = f"""
<body name="belt" pos="0 0 {0.8 + THICKNESS / 2}">
  <joint name="belt_slide" type="slide" axis="0 1 0" damping="0" frictionloss="0"/>
  <geom name="belt" type="box" size="{SIZE}" mass="1000" friction="1 0.005 0.0001" group="0"/>
  <geom name="belt_visual" type="box" size="{SIZE}" contype="0" conaffinity="0" mass="0" group="1"
        rgba="0.2 0.2 0.2 1"/>
</body>
"""
"""So heavy that neither cube nor hand slows it down. robosuite draws group 1, and weighs group 0."""


class BeltLift(Lift):  # type: ignore[misc]
    """Lift on a moving belt. Its observations also have `cube_vel` `[3]`, the cube's velocity in m/s."""

    def _load_model(self) -> None:
        super()._load_model()
        self.model.worldbody.append(ET.fromstring(BELT))
        # The belt lies on the table without touching it.
        self.model.contact.append(ET.Element("exclude", body1="table", body2="belt"))

    def _setup_observables(self) -> Any:
        observables = super()._setup_observables()

        @sensor(modality="object")  # type: ignore[untyped-decorator]
        def cube_vel(_: Any) -> Any:
            return np.array(self.sim.data.get_joint_qvel(self.cube.joints[0])[:3])

        observables["cube_vel"] = Observable(
            name="cube_vel", sensor=cube_vel, sampling_rate=self.control_freq
        )
        return observables

    def _reset_internal(self) -> None:
        super()._reset_internal()
        joint, data = self.cube.joints[0], self.sim.data
        place = np.array(data.get_joint_qpos(joint))
        place[1:3] += START, THICKNESS
        speed = self.rng.uniform(*SPEED)
        data.set_joint_qpos(joint, place)
        data.set_joint_qvel(joint, np.array((0.0, speed, 0.0, 0.0, 0.0, 0.0)))
        data.set_joint_qvel("belt_slide", speed)

    def _check_success(self) -> bool:
        top = float(self.model.mujoco_arena.table_offset[2]) + THICKNESS
        return bool(self.sim.data.body_xpos[self.cube_body_id][2] > top + LIFTED)
