"""The plant of a format that describes none: bounds, names and, if need be, the rate are assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.data.store import ASSUMED_RATE

from .store_builder import DEFAULT_RATE, estimate_bounds

FILLED = 0.5
"""Share of [-1, 1] that actions must fill in each dimension to be taken for scaled to it."""


def assumed_plant(
    task: str,
    fields: Sequence[ObservationField],
    actions: NDArray[np.float32],
    *,
    names: Sequence[str] | None = None,
    rate: float | None = None,
    environment: Mapping[str, Any] | None = None,
) -> PlantDescription:
    """A plant of these fields and of the bounds that `actions` `[N, A]` show.

    Actions that fill most of [-1, 1] and nothing beyond it have these bounds; others have those of the data,
    widened by 5 %. Without `rate` in Hz, one is assumed and marked.
    """
    low, high = estimate_bounds(actions)
    within, span = np.abs(actions[np.isfinite(actions).all(axis=1)]).max(initial=0.0) <= 1.0, high - low
    if within and (span >= FILLED * 2.0).all():
        low, high = np.full(len(low), -1.0), np.full(len(low), 1.0)
    return PlantDescription(
        task=task,
        fields=tuple(fields),
        actions=tuple(
            ActionDimension(names[i] if names else f"action_{i}", float(low[i]), float(high[i]))
            for i in range(actions.shape[1])
        ),
        control_rate=rate or DEFAULT_RATE,
        environment={**(environment or {}), **({} if rate else {ASSUMED_RATE: True})},
    )
