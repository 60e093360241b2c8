"""Which contracts a swapped model still takes requests under, and how each lays out an observation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import ObservationField
from rql_deploy.runtime.server.registry import ModelRegistry
from rql_deploy.runtime.wire.checks import ProtocolError
from tests.helpers.servers import CameraModel


def model_with(bundle: Path, *fields: ObservationField) -> CameraModel:
    """A model whose contract has these fields."""
    model = CameraModel(Bundle.open(bundle))
    dim = sum(field.size for field in fields)
    plant = msgspec.structs.replace(model.contract.plant, fields=fields)
    model.contract = msgspec.structs.replace(
        model.contract, plant=plant, observation_mean=(0.0,) * dim, observation_std=(1.0,) * dim
    )
    return model


def test_a_request_is_read_as_its_own_contract_lays_it_out(bundle: Path) -> None:
    arm, gripper = ObservationField("arm", (3,)), ObservationField("gripper", (1,))
    first, turned = model_with(bundle, arm, gripper), model_with(bundle, gripper, arm)
    registry = ModelRegistry([first])
    slot = registry.find(None)
    slot.swap(turned)
    old, new = first.contract.contract_id, turned.contract.contract_id
    _, layout, update = registry.find_for_contract(None, old)
    assert ([name for name, _, _ in layout.fields], update) == (["arm", "gripper"], new)
    _, layout, update = registry.find_for_contract(None, new)
    assert ([name for name, _, _ in layout.fields], update) == (["gripper", "arm"], None)
    # A model that reads more cannot answer requests of the contracts before it.
    slot.swap(model_with(bundle, arm, gripper, ObservationField("force", (1,))))
    for contract in (old, new, "another"):
        with pytest.raises(ProtocolError, match="say hello again") as error:
            registry.find_for_contract(None, contract)
        assert error.value.code == "contract_changed"
