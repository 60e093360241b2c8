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
from collections.abc import Mapping
from typing import Any

import numpy as np

from rql_deploy.contract import ActionDimension

MOTION = re.compile(r"(^|[._])(delta|rel|relative|vel|velocity)([._]|$)")
TARGETS = re.compile(r"(\.pos|_pos|\.position)$|^ee\.|^(left_|right_)?ee\.")


def action_dimensions(feature: Mapping[str, Any]) -> tuple[ActionDimension, ...]:
    """The dimensions of the feature `action`, with bounds of [-1, 1] that are still to be guessed."""
    return tuple(map(_dimension, dimension_names(feature, "action")))


def _dimension(name: str) -> ActionDimension:
    if MOTION.search(name.lower()):
        return ActionDimension(name, -1.0, 1.0, mode="delta", hold="zero", assumed=("bounds", "unit"))
    assumed: Any = ("bounds", "unit") if TARGETS.search(name.lower()) else ("bounds", "mode", "hold", "unit")
    return ActionDimension(name, -1.0, 1.0, mode="absolute", hold="repeat", assumed=assumed)


def dimension_names(feature: Mapping[str, Any], prefix: str) -> list[str]:
    """Names of a feature's numbers; `prefix_0`, `prefix_1`, ... where it gives none that fit.

    They are a list, a table with a list under a key such as "motors", or a table from names to places.
    """
    names: Any = feature.get("names")
    width = int(np.prod(feature["shape"]))
    if isinstance(names, dict) and names:
        places = list(names.values())
        if all(isinstance(place, int) for place in places) and sorted(places) == list(range(width)):
            names = sorted(names, key=names.__getitem__)
        else:
            names = [name for part in places for name in (part if isinstance(part, list) else [part])]
    if not isinstance(names, list) or len(names) != width or len(set(map(str, names))) != width:
        return [f"{prefix}_{i}" for i in range(width)]
    return [str(name) for name in names]
