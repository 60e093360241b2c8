"""Set-points between the commands of a policy, for controllers that want one every millisecond.

A policy commands 10 to 50 times a second, a driver 100 to 1000 times. `Setpoints` says what the driver is to
do in each of its cycles: absolute targets are approached on a straight line or with minimum jerk, a delta is
divided into motions whose sum is the delta, a velocity stays until the next command is overdue. Nothing here
uses a clock.
"""

from __future__ import annotations

import math
import re
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.contract import ActionDimension, PlantDescription
from rql_deploy.errors import ContractError

Method = Literal["linear", "minimum-jerk"]
METHODS: tuple[Method, ...] = get_args(Method)
GRACE = 0.5
"""Share of a control period by which a command may be late before a velocity falls to zero."""
ORIENTATION = re.compile(
    r"roll|pitch|yaw|quat|rot|axis|euler|orient|rpy|(^|[._])[rw][xyz]([._]|$)|(^|[._])q[wxyz]([._]|$)"
)
"""What names of components of an orientation look like, also `ee.wx` (LeRobot's rotation vector) and `rx`."""
Array = NDArray[np.float64]


class Setpoints:
    """One set-point `[A]` per driver cycle, from commands that come when they come.

    Per dimension, by the contract:

    - absolute: from where the set-point is to the target within one control period, then the target. Linear:
      constant velocity. Minimum jerk (Flash and Hogan 1985): a polynomial of degree five from the present
      position, velocity and acceleration to rest at the target, so that none of them jumps; its greatest
      velocity from rest is 15/8 of the mean. Set-points never leave the action's bounds.
    - delta: the command, and what is still owed of the one before, spread over the cycles of one control
      period. The motions of a command, added in the order they are sent, give it exactly; after the period
      they are zero.
    - velocity (delta, with a unit per second): the command itself, and zero once the next is `grace` overdue.

    A delta rotation vector is divided exactly: its parts turn about the same axis. Components of an absolute
    orientation may not be interpolated one by one, and are refused.
    """

    def __init__(
        self,
        plant: PlantDescription,
        driver_rate: float,
        start: ArrayLike,
        *,
        method: Method = "linear",
        grace: float = GRACE,
    ):
        """`driver_rate` in Hz; `start` `[A]` is the command at which the plant rests (of deltas, ignored).

        Raises ContractError for an absolute orientation, a driver slower than the policy, or no such method.
        """
        for action in plant.actions:
            if is_orientation(action):
                raise ContractError(
                    f"action '{action.name}' is part of an absolute orientation, which must not be "
                    "interpolated number by number",
                    hint="command deltas or joint angles, or let the driver interpolate orientations",
                )
        if method not in METHODS:
            raise ContractError(f"there is no method {method!r}", hint=f"pass one of {', '.join(METHODS)}")
        if driver_rate == math.inf:
            raise ContractError("a driver has no infinite rate", hint="pass its cycles per second")
        if not driver_rate >= plant.control_rate:
            raise ContractError(
                f"a driver of {driver_rate:g} Hz is slower than the policy's {plant.control_rate:g} Hz",
                hint="command it directly",
            )
        self._cycles = max(1, round(driver_rate / plant.control_rate))
        self._overdue = self._cycles + int(np.ceil(grace * self._cycles))
        self._minimum_jerk = method == "minimum-jerk"
        self._low, self._high = plant.action_low.astype(np.float64), plant.action_high.astype(np.float64)
        self._velocity = np.array([is_velocity(action) for action in plant.actions])
        self._delta = np.array([action.mode == "delta" for action in plant.actions]) & ~self._velocity
        self._absolute = ~(self._delta | self._velocity)
        self._period = self._cycles / driver_rate
        self._position = np.where(self._absolute, np.asarray(start, np.float64), 0.0)
        self._speed, self._acceleration = np.zeros(len(self._low)), np.zeros(len(self._low))
        self._command = self._position.copy()
        self._coefficients = np.zeros((6, len(self._low)))
        self._coefficients[0] = self._position
        self._owed = self._sent = np.zeros(len(self._low))
        self._from, self._cycle, self._motions = self._position, self._overdue, 0

    @property
    def silent(self) -> bool:
        """Whether the next command is overdue: the plant is at rest, or comes to rest."""
        return self._cycle >= self._overdue

    def command(self, action: ArrayLike) -> None:
        """Take a command `[A]`; the next cycles carry it out."""
        self._command = np.asarray(action, np.float64).copy()
        self._from, self._cycle = self._position, 0
        self._owed, self._motions = self._owed - self._sent + self._command, self._cycles
        self._sent = np.zeros(len(self._low))
        if self._minimum_jerk:
            self._coefficients = minimum_jerk(
                self._position, self._speed, self._acceleration, self._command, self._period
            )

    def skip(self) -> None:
        """A cycle was left out: targets and velocities go on in time, deltas are not hurried."""
        self._cycle += 1

    def rest(self) -> Array:
        """The set-point `[A]` that ends all motion: targets stay where they have come to."""
        return np.where(self._absolute, self._position, 0.0)

    def next(self) -> Array:
        """The set-point `[A]` of this cycle."""
        self._cycle += 1
        done = min(1.0, self._cycle / self._cycles)
        if self._minimum_jerk and done < 1.0:
            powers = (done * self._period) ** np.arange(6)
            order = np.arange(1, 6)
            first = self._coefficients[1:] * order[:, None]
            second = first[1:] * order[:4, None]
            reached = powers @ self._coefficients
            self._speed, self._acceleration = powers[:5] @ first, powers[:4] @ second
        else:
            # At the end exactly the target, whatever rounding has made of the way to it.
            reached = self._from + (self._command - self._from) * done if done < 1.0 else self._command
            if self._minimum_jerk:
                self._speed = self._acceleration = np.zeros(len(self._low))
        self._position = np.where(self._absolute, np.clip(reached, self._low, self._high), 0.0)
        # The last motion is the whole rest, so that rounding does not accumulate.
        motion = (self._owed - self._sent) / max(1, self._motions)
        self._sent, self._motions = self._sent + motion, self._motions - 1
        velocity = self._command if self._cycle <= self._overdue else 0.0 * self._command
        return np.where(self._absolute, self._position, np.where(self._delta, motion, velocity))


def minimum_jerk(start: Array, speed: Array, acceleration: Array, target: Array, seconds: float) -> Array:
    """Coefficients `[6, A]` of the polynomial in time from a moving start to rest at the target."""
    t, way = seconds, target - start
    return np.stack(
        (
            start,
            speed,
            acceleration / 2,
            (20 * way - 12 * speed * t - 3 * acceleration * t**2) / (2 * t**3),
            (-30 * way + 16 * speed * t + 3 * acceleration * t**2) / (2 * t**4),
            (12 * way - 6 * speed * t - acceleration * t**2) / (2 * t**5),
        )
    )


def is_velocity(action: ActionDimension) -> bool:
    """Whether the command is a velocity, which lasts, and not a motion, which is used up."""
    return action.mode == "delta" and (action.unit.endswith("/s") or "VELOCITY" in action.controller.upper())


def is_orientation(action: ActionDimension) -> bool:
    """Whether the dimension is a component of an absolute orientation, not a joint's angle."""
    if action.mode != "absolute" or action.frame == "joint" or action.controller.startswith("JOINT"):
        return False
    return ORIENTATION.search(action.name.lower()) is not None
