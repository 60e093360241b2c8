"""The plant of a format that describes none: bounds, motion, names and, if need be, the rate are assumed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.data.assumed import UNSAID, fills_unit_range, finite_range, with_guessed_bounds

from .store_builder import DEFAULT_RATE


def assumed_plant(
    task: str,
    fields: Sequence[ObservationField],
    actions: NDArray[np.float32],
    *,
    dimensions: Sequence[ActionDimension] = (),
    rate: float | None = None,
) -> PlantDescription:
    """A plant of these fields, whose action `dimensions` say what the data says of `actions` `[N, A]`.

    Without any, all of them is assumed. Actions that fill most of [-1, 1] and nothing beyond it are taken for
    scaled to it; others are bounded by their range, widened by 5 %. Without `rate` in Hz, one is assumed.
    """
    low, high = finite_range(actions)
    plant = PlantDescription(
        task=task,
        fields=tuple(fields),
        actions=tuple(dimensions or map(_unsaid, range(actions.shape[1]))),
        control_rate=rate or DEFAULT_RATE,
        assumed=() if rate else ("control_rate",),
    )
    return plant if fills_unit_range(low, high) else with_guessed_bounds(plant, low, high)


def _unsaid(i: int) -> ActionDimension:
    """Dimension `i` of actions of which nothing is known; a change, as most formats hold."""
    return ActionDimension(f"action_{i}", -1.0, 1.0, assumed=UNSAID)
