"""Comparing bundles on recorded episodes: what a policy that sees is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.shards import with_plant
from rql_deploy.workflows.improvement.held_out import _seen, measure
from tests.helpers.data import make_picture_store


def recorded(contract: Contract) -> Any:
    """Episodes of 9, 7 and 12 ticks whose frames hold their row's number."""
    image = contract.plant.images[0]
    store = make_picture_store((image.name,), height=image.height, width=image.width)
    frames = np.repeat(np.arange(len(store), dtype=np.uint8), image.height * image.width * 3)
    store.images[image.name] = Frames.of(frames.reshape(len(store), image.height, image.width, 3))
    return with_plant(store, contract.plant)


def test_each_tick_is_seen_with_its_last_frames_and_none_of_the_episode_before(picture_bundle: Path) -> None:
    contract = Bundle.open(picture_bundle).contract
    store, name = recorded(contract), contract.plant.images[0].name
    for tick, first, expected in ((9, 9, [9, 9]), (10, 9, [9, 10]), (27, 16, [26, 27])):
        picture = _seen(contract, store, first, tick)[name]
        assert picture[0, 0, ::3].tolist() == expected


def test_errors_of_a_policy_that_sees_are_those_of_its_own_chunks(picture_bundle: Path) -> None:
    bundle = Bundle.open(picture_bundle)
    contract = bundle.contract
    store = recorded(contract)
    found = measure(bundle, store)
    decisions = [len(range(0, length - contract.h + 1, contract.h)) for length in (9, 7, 12)]
    assert [len(values) for values in found.values] == decisions
    one = _seen(contract, store, 0, 0)
    chunk = store.actions[: contract.h]
    model = Model(bundle)
    v, _ = model.value_of_chunks(model.encode(model.rows(one)), chunk[None])
    assert found.values[0][0] == float(v[0])
    half_range = (contract.plant.action_high - contract.plant.action_low) / 2
    error = np.abs((OnnxPolicy(bundle).act(one, seed=0).actions - chunk) / half_range).mean()
    assert found.behaviour[0] > 0 and np.isfinite(error)
