"""Random transition stores for Hypothesis: what a plant may look like, and what its episodes may."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.data.store import TransitionStore

NAMES = (
    "position",
    "observation",
    "observation.state",
    "policy/joint_pos",
    "policy/eef pos",
    "Größe",
    "1",
    "a.b",
)
SHAPES = ((), (1,), (1, 1), (2,), (7,), (2, 3))
RATES = (1.0, 20.0, 62.5, 1000.0)


@st.composite
def plants(draw: st.DrawFn) -> PlantDescription:
    """Plants of one to three fields and actions: scalars, one-number features, tables, bytes."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    if {"observation", "observation.state"} <= set(names):
        names.remove("observation")  # LeRobot would call both the same
    fields = tuple(
        ObservationField(
            name, draw(st.sampled_from(SHAPES)), dtype=draw(st.sampled_from(("float32", "uint8")))
        )
        for name in names
    )
    low = draw(st.sampled_from((-1.0, -3.5, 0.0)))
    actions = tuple(
        ActionDimension(f"{axis} [m/s]", low, low + 2.0) for axis in "xyz"[: draw(st.integers(1, 3))]
    )
    return PlantDescription("random plant", fields, actions, draw(st.sampled_from(RATES)))


@st.composite
def stores(draw: st.DrawFn) -> TransitionStore:
    """Stores of one to four episodes, some of one row; successes and final observations may be unknown."""
    plant = draw(plants())
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows, episodes = sum(lengths), len(lengths)

    def observed(count: int) -> NDArray[np.float32]:
        parts = [
            rng.integers(0, 256, (count, field.size))
            if field.dtype == "uint8"
            else rng.normal(size=(count, field.size))
            for field in plant.fields
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    ends = np.cumsum(lengths).astype(np.int64)
    masks = np.ones(rows, np.float32)
    succeeded = rng.random(episodes) < 0.5
    masks[ends[succeeded] - 1] = 0.0
    return TransitionStore(
        dataset_id="random/plant-v0",
        plant=plant,
        observations=observed(rows),
        actions=rng.uniform(plant.action_low, plant.action_high, (rows, plant.action_dim)).astype(np.float32),
        rewards=rng.normal(size=rows).astype(np.float32),
        masks=masks,
        ends=ends,
        successes=succeeded if draw(st.booleans()) else None,
        finals=observed(episodes) if draw(st.booleans()) else None,
    )


def field_columns(store: TransitionStore) -> dict[str, NDArray[np.float32]]:
    """Each field's rows `[N, *shape]` by its name."""
    found: dict[str, Any] = {}
    start = 0
    for field in store.plant.fields:
        found[field.name] = store.observations[:, start : start + field.size].reshape(-1, *field.shape)
        start += field.size
    return found
