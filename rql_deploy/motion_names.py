"""What the name of an action dimension says of its motion, as LeRobot's robots and data sets name them.

| name | meaning |
|---|---|
| `shoulder_pan.pos`, `left_gripper.pos` | target position of a motor: absolute |
| `x.vel`, `theta.vel` | speed of a base: must stop in a hold, as a change does |
| `delta_x`, `dx`, `x_rel` | change per step, as gamepads and keyboards give it: delta |
| `vx`, `linear.x`, `base_speed` | speed: the same as `x.vel` |
| `ee.x`, `ee.gripper_pos` | target pose of the hand: absolute |

Whatever is named otherwise is taken for a target, and the dimension says that this was assumed. There are
neither bounds nor units.
"""

from __future__ import annotations

import re
from typing import Any

from rql_deploy.plant_description import ActionDimension

MOTION = re.compile(
    r"(^|[._])(deltas?|rel|relative|vel|vels|velocity|velocities|speeds?|twist"
    r"|incs?|increments?|diffs?|d_?(x|y|z|rx|ry|rz|roll|pitch|yaw|theta|gripper|q\d*|j\d+)|v_?[xyz]"
    r"|(linear|angular)[._][xyz])([._]|$)"
)
TARGETS = re.compile(
    r"(\.pos|_pos|\.position)$|^(left_|right_)?ee\.(x|y|z|wx|wy|wz|q[xyzw]|roll|pitch|yaw|gripper)$"
)


def dimension(name: str, above: str = "") -> ActionDimension:
    """The action dimension of this name; `above` are the words above it, of its feature and group."""
    own, above = _plain(name), _plain(above)
    if MOTION.search(own) or (MOTION.search(above) and not _is_gripper(own)):
        return ActionDimension(name, -1.0, 1.0, mode="delta", hold="zero", assumed=("bounds", "unit"))
    assumed: Any = ("bounds", "unit") if TARGETS.search(own) else ("bounds", "mode", "hold", "unit")
    return ActionDimension(name, -1.0, 1.0, mode="absolute", hold="repeat", assumed=assumed)


def _plain(name: str) -> str:
    """In lower case, words joined by `_`: `deltaX` and `delta-x` are `delta_x`."""
    return re.sub(r"[\s-]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


def _is_gripper(name: str) -> bool:
    return any(word in name for word in ("grip", "hand", "finger", "claw"))
