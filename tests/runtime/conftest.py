from pathlib import Path

import msgspec
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import ActionDimension, Contract
from tests.helpers.servers import variant


@pytest.fixture(scope="module")
def contract(bundle: Path) -> Contract:
    """The test bundle's, with one dimension of delta motion, a named controller and an absolute gripper."""
    base = Bundle.open(bundle).contract
    plant = msgspec.structs.replace(
        base.plant,
        actions=(
            ActionDimension("dx", -1, 1, controller="OSC_POSITION"),
            ActionDimension("gripper", -1, 1, mode="absolute", hold="repeat"),
        ),
    )
    calibration = msgspec.structs.replace(
        base.calibration, action_rate=tuple((2.0, 2.0) for _ in base.calibration.levels)
    )
    return msgspec.structs.replace(base, plant=plant, calibration=calibration)


@pytest.fixture(scope="module")
def successor(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A bundle for the same plant with other weights."""
    contract = Bundle.open(bundle).contract
    later = msgspec.structs.replace(
        contract, provenance=msgspec.structs.replace(contract.provenance, updates=99)
    )
    return variant(bundle, tmp_path_factory.mktemp("successor") / "bundle", later, scale=2.0)
