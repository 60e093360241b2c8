import dataclasses
from pathlib import Path

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import ActionDimension, Contract


@pytest.fixture(scope="module")
def contract(bundle: Path) -> Contract:
    """Of the test bundle, with one dimension of delta motion under a named controller and an absolute gripper."""
    base = Bundle.open(bundle).contract
    plant = dataclasses.replace(
        base.plant,
        actions=(
            ActionDimension("dx", -1, 1, controller="OSC_POSITION"),
            ActionDimension("gripper", -1, 1, mode="absolute", hold="repeat"),
        ),
    )
    calibration = dataclasses.replace(base.calibration, action_rate=tuple((2.0, 2.0) for _ in base.calibration.levels))
    return dataclasses.replace(base, plant=plant, calibration=calibration)
