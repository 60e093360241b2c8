"""Robot-side limits: they tighten the contract or are refused by name."""

import math
from pathlib import Path

import jsonschema
import pytest

from rql_deploy.contract import Calibration, Contract, ContractError, Provenance
from rql_deploy.limits import ActionLimit, Limits, ObservationLimit
from rql_deploy.structs import to_plain
from tests.helpers.commands import LIFT_BUNDLE, assert_refused, cli
from tests.helpers.data import PLANT
from tests.helpers.schemas import json_schema

GOOD = """
max_consecutive_holds = 5
min_success_rate = 0.95
max_spread = 1.5

[actions.dx]
low = -0.5
rate = 0.1

[observations.position]
low = [0.0, -0.5, 0.1]
high = [0.6, 0.5, 0.8]
"""


@pytest.fixture
def contract() -> Contract:
    rates = ((0.0, 0.0), (1.0, 1.0))
    return Contract(
        plant=PLANT,
        h=3,
        F=10,
        observation_mean=(0.0,) * 4,
        observation_std=(1.0,) * 4,
        value_members=2,
        calibration=Calibration((0.0, 1.0), {}, rates, (-10.0, 0.0), (0.0, 4.0)),
        provenance=Provenance("tiny", "", {}, 0, 0, {}),
    )


def load(text: str, contract: Contract, folder: Path) -> Limits:
    (folder / "limits.toml").write_text(text)
    return Limits.load(folder / "limits.toml", contract)


def test_tighter_limits_are_read(contract: Contract, tmp_path: Path) -> None:
    limits = load(GOOD, contract, tmp_path)
    assert limits.actions == {"dx": ActionLimit(low=-0.5, rate=0.1)}
    assert limits.observations["position"].high == (0.6, 0.5, 0.8)
    assert limits.max_consecutive_holds == 5
    jsonschema.validate(to_plain(limits), json_schema(Limits))
    assert load("", contract, tmp_path) == Limits()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[actions.dx]\nlow = -1.5",
            r"widens action 'dx' to \[-1.5, 1\], the contract says \[-1, 1\]: limits may only tighten",
        ),
        ("[actions.gripper]\nhigh = 4.1", "widens action 'gripper'"),
        ("[actions.dx]\nlow = 0.5\nhigh = 0.5", "leaves no range"),
        ("[actions.dx]\nrate = 0", "a number above 0"),
        (
            "[actions.dx]\nacceleration = -1",
            "limits the acceleration of action 'dx' to -1: pass a number above 0",
        ),
        ("[actions.dx]\nlow = 0.1", "leaves 0 out of the range of action 'dx', which holds at 0"),
        ("cool_down = 0.1", "limits may only tighten"),
        ("max_observation_age = 0", "pass seconds above 0"),
        ('on_violation = "repair"', "'reject' or 'clamp'"),
        ("[actions.gripperr]\nlow = 0", "'gripperr' that the contract does not have: did you mean gripper"),
        ("[observations.postion]\nlow = [0]", "did you mean position"),
        ("[observations.position]\nlow = [0]", "gives 1 numbers for low of field 'position', which has 3"),
        ("[observations.opening]\nlow = [1.0]\nhigh = [1.0]", "no room for field 'opening'"),
        ("max_consecutive_holds = 21", "limits may only tighten"),
        ("min_success_rate = 0.5", "limits may only tighten"),
        ("max_spread = -1.0", "never below 0"),
        ("max_hold = 3", "unknown entry 'max_hold'"),
        ("[actions.dx]\nlow = nan", "a finite number"),
        ("[actions", "is not TOML"),
    ],
)
def test_limits_that_widen_or_name_nothing_are_refused(
    text: str, words: str, contract: Contract, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=words):
        load(text, contract, tmp_path)


def test_inspect_checks_a_limits_file_against_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("[actions.dx]\nhigh = 0.5\n")
    shown = cli("inspect", LIFT_BUNDLE, "--limits", tmp_path / "limits.toml")
    assert shown.exit_code == 0
    assert "only tightens the contract" in shown.output
    (tmp_path / "limits.toml").write_text("[actions.dx]\nhigh = 1.5\n")
    assert_refused(cli("inspect", LIFT_BUNDLE, "--limits", tmp_path / "limits.toml"), "widens action 'dx'")
    assert_refused(cli("inspect", LIFT_BUNDLE, "--limits", tmp_path / "absent.toml"), "cannot read")


@pytest.mark.parametrize(
    "limits",
    [
        *(
            Limits(actions={"dx": ActionLimit(**{entry: math.nan})})
            for entry in ("low", "high", "rate", "acceleration")
        ),
        Limits(observations={"opening": ObservationLimit((math.nan,), (1.0,))}),
        *(
            Limits(**{entry: math.nan})
            for entry in ("max_observation_age", "cool_down", "max_spread", "min_success_rate")
        ),
        Limits(cool_down=math.inf),
    ],
)
def test_a_number_that_is_none_switches_no_limit_off(limits: Limits, contract: Contract) -> None:
    with pytest.raises(ContractError, match="limits"):
        limits.check(contract)
