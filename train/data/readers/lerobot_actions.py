"""What a LeRobotDataset says of its actions: only names, and its robots' names follow conventions.

| name | meaning |
|---|---|
| `shoulder_pan.pos`, `left_gripper.pos` | target position of a motor: absolute |
| `x.vel`, `theta.vel` | speed of a base: must stop in a hold, as a change does |
| `delta_x`, `delta_yaw` | change per step, as gamepads and keyboards give it: delta |
| `ee.x`, `ee.gripper_pos` | target pose of the hand: absolute |

Whatever is named otherwise is taken for a target, and the dimension says that this was assumed. The format
has neither bounds nor units.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rql_deploy.contract import ActionDimension

MOTION = re.compile(r"(^|[._])(delta|rel|relative|vel|velocity)([._]|$)")
TARGETS = re.compile(r"(\.pos|_pos|\.position)$|^ee\.|^(left_|right_)?ee\.")


def action_dimensions(names: Iterable[str]) -> tuple[ActionDimension, ...]:
    """The dimensions of these names, with bounds of [-1, 1] that are still to be guessed."""
    return tuple(map(_dimension, names))


def _dimension(name: str) -> ActionDimension:
    if MOTION.search(name.lower()):
        return ActionDimension(name, -1.0, 1.0, mode="delta", hold="zero", assumed=("bounds", "unit"))
    assumed: Any = ("bounds", "unit") if TARGETS.search(name.lower()) else ("bounds", "mode", "hold", "unit")
    return ActionDimension(name, -1.0, 1.0, mode="absolute", hold="repeat", assumed=assumed)
