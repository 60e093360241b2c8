"""Actions in degrees are held to what float32 can hold of them, and no looser."""

import msgspec

from rql_deploy.bundle import certificate
from rql_deploy.bundle.bundle import Bundle
from tests.helpers.commands import ROOT


def test_an_action_is_measured_in_units_of_its_bounds_where_they_exceed_one() -> None:
    contract = Bundle.open(ROOT / "tests" / "data" / "tiny_bundle").contract
    small, large = contract.plant.actions
    actions = (
        msgspec.structs.replace(small, low=-0.1, high=0.1),
        msgspec.structs.replace(large, low=-180.0, high=90.0),
    )
    plant = msgspec.structs.replace(contract.plant, actions=actions)
    contract = msgspec.structs.replace(contract, plant=plant)
    for name, units in (
        ("policy", [1, 180]),
        ("refine/3/preview", [1, 180]),
        ("refine/3/x", [1]),
        ("value", [1]),
    ):
        assert certificate._unit(name, contract).tolist() == units
