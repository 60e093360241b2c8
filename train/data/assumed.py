"""What readers assume where a data set does not say it: bounds from its range, and warnings of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.assumptions import assumed_items, describe_assumed
from rql_deploy.contract import ActionDimension, PlantDescription
from rql_deploy.plant_description import ActionItem

MARGIN = 0.05
"""Share of a dimension's range by which guessed bounds are wider than the data, on each side."""
LEAST_MARGIN = 1e-3
"""Of a dimension that never changes, so that scaling it stays finite."""
FILLED = 0.2
"""Actions that fill a smaller share of assumed bounds are warned about."""
UNIT_FILLED = 0.5
"""Share of [-1, 1] that actions of a format that does not normalise them must fill to be taken for scaled."""
UNSAID: tuple[ActionItem, ...] = ("bounds", "mode", "hold", "unit")
"""What of an action's dimensions a format without any description of them leaves open."""

Array = NDArray[np.float64]


def finite_range(actions: NDArray[np.float32]) -> tuple[Array, Array]:
    """Least and greatest finite number `[A]` of actions `[N, A]`; infinite where a dimension has none."""
    seen = np.isfinite(actions)
    low = actions.min(axis=0, where=seen, initial=np.inf).astype(np.float64)
    high = actions.max(axis=0, where=seen, initial=-np.inf).astype(np.float64)
    return low, high


def guessed_bounds(low: ArrayLike, high: ArrayLike) -> tuple[Array, Array]:
    """Bounds `low` and `high` `[A]` for data whose actions span `low` to `high` `[A]`: a margin wider.

    Dimensions without a finite number get [-1, 1].
    """
    least, greatest = np.asarray(low, np.float64), np.asarray(high, np.float64)
    seen = np.isfinite(least) & np.isfinite(greatest)
    least, greatest = np.where(seen, least, -1.0), np.where(seen, greatest, 1.0)
    room = np.where(seen, np.maximum(MARGIN * (greatest - least), LEAST_MARGIN), 0.0)
    return least - room, greatest + room


def fills_unit_range(low: ArrayLike, high: ArrayLike, share: float = UNIT_FILLED) -> bool:
    """Whether actions that span `low` to `high` `[A]` stay in [-1, 1] and fill this share of it, in each
    dimension.
    """
    least, greatest = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return bool((least >= -1).all() and (greatest <= 1).all() and (greatest - least >= 2.0 * share).all())


def with_guessed_bounds(plant: PlantDescription, low: ArrayLike, high: ArrayLike) -> PlantDescription:
    """The plant with bounds guessed from the range of its data, where it assumes bounds.

    Those of a dimension that holds at zero have zero within them.
    """
    least, greatest = guessed_bounds(low, high)
    return msgspec.structs.replace(
        plant,
        actions=tuple(
            _between(action, float(least[i]), float(greatest[i])) if "bounds" in action.assumed else action
            for i, action in enumerate(plant.actions)
        ),
    )


def _between(action: ActionDimension, low: float, high: float) -> ActionDimension:
    if action.hold == "zero":
        low, high = min(low, 0.0), max(high, 0.0)
    return msgspec.structs.replace(action, low=low, high=high)


def assumption_warnings(
    dataset_id: str, plant: PlantDescription, low: ArrayLike, high: ArrayLike
) -> Iterator[str]:
    """What was assumed of the plant of data whose actions span `low` to `high` `[A]`, one sentence each."""
    if plant.rate_assumed:
        yield (
            f"{dataset_id} does not state its control rate: {plant.control_rate:g} Hz is assumed and written "
            "into the policy's contract; say it with --rate HZ"
        )
    if mode := describe_assumed(plant, ("mode",)):
        yield (
            f"{dataset_id} does not say whether actions are changes (delta) or targets (absolute): {mode[0]} "
            "is assumed; say it with --action-mode"
        )
    if colours := describe_assumed(plant, ("colour_order",)):
        name = assumed_items(plant)["colour_order"][0]
        yield (
            f"{dataset_id} does not say the {colours[0].removesuffix(' (RGB)')}, and bytes do not show it: "
            f"RGB is assumed; say it with --camera {name}:rgb, or :bgr, when the data is imported"
        )
    if not (bounds := describe_assumed(plant, ("bounds",))):
        return
    yield (
        f"{dataset_id} does not state the {bounds[0]}; say them with --action-bounds FILE or [LOW,HIGH], or "
        "take the range of the data with --action-bounds dataset"
    )
    guessed = set(assumed_items(plant)["bounds"])
    span = np.asarray(high, np.float64) - np.asarray(low, np.float64)
    share = span / (plant.action_high - plant.action_low)
    if narrow := [
        (action, float(share[i]))
        for i, action in enumerate(plant.actions)
        if action.name in guessed and 0 < share[i] < FILLED
    ]:
        action, part = min(narrow, key=lambda pair: pair[1])
        more = f", and {len(narrow) - 1} more as little" if len(narrow) > 1 else ""
        yield (
            f"action '{action.name}' fills {part:.1%} of its assumed bounds [{action.low:g}, "
            f"{action.high:g}]{more}: a policy may command far more than the data shows; say the bounds with "
            "--action-bounds"
        )
