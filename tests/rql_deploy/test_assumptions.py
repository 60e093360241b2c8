"""What data did not say is listed, joins where it was guessed, and moves no robot unasked."""

import json

import msgspec
import pytest

from rql_deploy.assumptions import (
    first_conflict,
    joined,
    motion_remark,
    replacement_conflicts,
    require_stated_motion,
)
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import ActionDimension, Contract, ContractError, ImageField, PlantDescription
from rql_deploy.plant_description import ASSUMED_RATE
from rql_deploy.runtime.control.lockstep import ControlLoop
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.server.registry import incompatibilities
from tests.helpers.commands import ROOT
from tests.helpers.rail import Rail, Scripted

GUESSED = ("bounds", "mode", "hold", "unit")


def plant(low: float = -1.0, high: float = 1.0, *assumed: str, **changes: object) -> PlantDescription:
    known = PlantDescription(
        "arm",
        (),
        (ActionDimension("x", low, high, assumed=assumed),),
        20.0,  # type: ignore[arg-type]
    )
    return msgspec.structs.replace(known, **changes)


@pytest.fixture(scope="module")
def contract() -> Contract:
    """One whose data set, made before there was `assumed`, marks its rate in the environment."""
    return Bundle.open(ROOT / "tests" / "data" / "tiny_bundle").contract


def assuming(contract: Contract, *items: str) -> Contract:
    actions = tuple(msgspec.structs.replace(a, assumed=items) for a in contract.plant.actions)
    return msgspec.structs.replace(contract, plant=msgspec.structs.replace(contract.plant, actions=actions))


def test_guessed_bounds_are_widened_and_known_ones_win() -> None:
    first, second, known = plant(-1, 0.5, "bounds"), plant(-0.5, 2, "bounds"), plant(-3, 3)
    assert first.differences(second) == first.differences(known) == []
    action = joined([first, second]).actions[0]
    assert (action.low, action.high, action.assumed) == (-1, 2, ("bounds",))
    action = joined([first, known, second]).actions[0]
    assert (action.low, action.high, action.assumed) == (-3, 3, ())
    assert joined([first, first]) is first


def test_known_bounds_must_agree_although_a_guess_lies_between() -> None:
    earlier, later, differences = first_conflict([plant(-1, 1), plant(-1, 2, "bounds"), plant(-2, 2)]) or (
        0,
        0,
        [],
    )
    assert (earlier, later) == (0, 2)
    assert differences == [
        "action 'x' has low -2 instead of -1",
        "action 'x' has high 2 instead of 1",
    ]


def test_modes_and_rates_are_not_joined_by_guessing() -> None:
    absolute = plant(-1, 1, "mode", "hold")
    absolute = msgspec.structs.replace(
        absolute, actions=(msgspec.structs.replace(absolute.actions[0], mode="absolute", hold="repeat"),)
    )
    differences = plant().differences(absolute)
    assert "mode 'absolute' instead of 'delta' (assumed: say it with --action-mode)" in differences[0]
    other = plant(control_rate=30.0, assumed=("control_rate",))
    assert plant().differences(other) == [
        "the control rate is 30 Hz instead of 20 Hz (assumed: say it with --rate)"
    ]
    same = msgspec.structs.replace(other, control_rate=20.0)
    assert joined([plant(), same]).assumed == ("control_rate",)
    assert plant(environment={ASSUMED_RATE: True}).rate_assumed


def test_units_that_one_does_not_say_are_taken_from_the_other() -> None:
    said = msgspec.structs.replace(
        plant(), actions=(ActionDimension("x", -1, 1, "0.05 m", "OSC_POSE", "base"),)
    )
    unsaid = plant(-1, 1, "unit")
    assert said.differences(unsaid) == unsaid.differences(said) == []
    assert joined([unsaid, said]).actions == said.actions
    assert said.differences(plant()) != []


def test_the_contract_keeps_its_id_where_nothing_was_assumed(contract: Contract) -> None:
    assert '"assumed"' not in contract.to_json()
    guessed = assuming(contract, *GUESSED)
    again = Contract.from_json(guessed.to_json())
    assert again == guessed and again.contract_id == guessed.contract_id != contract.contract_id
    plain = json.loads(guessed.to_json())
    plain["plant"]["actions"][0]["assumed"] = ["bound"]
    with pytest.raises(ContractError, match=r"actions\[0\].assumed\[0\] should be 'bounds' or 'mode'"):
        Contract.from_json(json.dumps(plain))


def test_guessed_bounds_must_fit_the_plant_that_knows_its_own(contract: Contract) -> None:
    guessed = assuming(contract, "bounds")
    guessed.require(contract.plant)
    narrow = tuple(msgspec.structs.replace(a, high=a.high / 2) for a in contract.plant.actions)
    with pytest.raises(ContractError, match=r"may reach .* the plant takes"):
        guessed.require(msgspec.structs.replace(contract.plant, actions=narrow))


@pytest.mark.parametrize("item", ["bounds", "mode", "hold"])
def test_no_loop_moves_a_robot_by_what_was_assumed(contract: Contract, item: str) -> None:
    guessed = assuming(contract, item)
    for loop in (ControlLoop, RealTimeLoop):
        with pytest.raises(ContractError, match=r"may move a robot wrongly.*--action-.*--accept-assumed"):
            loop(Rail(), Scripted(guessed))
        simulator = Rail()
        simulator.simulated = True  # type: ignore[attr-defined]
        for made in (
            loop(simulator, Scripted(guessed)),
            loop(Rail(), Scripted(guessed), accept_assumed=True),
            loop(Rail(), Scripted(contract)),
            loop(Rail(), Scripted(assuming(contract, "unit"))),
        ):
            getattr(made, "close", lambda: None)()


def test_an_assumed_rate_is_motion(contract: Contract) -> None:
    assumed = msgspec.structs.replace(contract.plant, assumed=("control_rate",))
    guessed = msgspec.structs.replace(contract, plant=assumed)
    assert "control rate (20 Hz): say it with --rate" in (motion_remark(guessed.plant) or "")
    with pytest.raises(ContractError, match="--rate"):
        require_stated_motion(guessed, None)
    assert contract.plant.rate_assumed
    assert motion_remark(contract.plant) is None


def test_a_swap_moves_guessed_bounds_and_brings_no_new_guess(contract: Contract) -> None:
    guessed = assuming(contract, "bounds")
    wider = tuple(msgspec.structs.replace(a, high=2 * a.high) for a in guessed.plant.actions)
    moved = msgspec.structs.replace(guessed, plant=msgspec.structs.replace(guessed.plant, actions=wider))
    assert incompatibilities(guessed, moved) == []
    assert incompatibilities(moved, contract) == []
    assert "it assumes bounds of" in "; ".join(incompatibilities(contract, guessed))
    rate = msgspec.structs.replace(contract.plant, assumed=("control_rate",))
    assert replacement_conflicts(contract.plant, rate) == ["it assumes control rate (20 Hz)"]


def test_a_swap_keeps_what_robots_make_of_their_cameras_frames() -> None:
    def seeing(stack: int = 1, **more: object) -> PlantDescription:
        image = ImageField("top", 96, 96, **{"camera_height": 480, "camera_width": 640, **more})  # type: ignore[arg-type]
        return PlantDescription("arm", (), (), 20.0, images=(image,), frame_stack=stack)

    old = seeing()
    assert replacement_conflicts(old, seeing(camera_height=240, camera_width=320)) == []
    assert replacement_conflicts(old, seeing(crop=(0, 0, 480, 640))) == []
    (wide,) = replacement_conflicts(old, seeing(camera_height=720, camera_width=1280))
    assert wide == (
        "camera 'top' keeps all of frames of 720 x 1280 pixels instead of all of frames of 480 x 640 pixels"
    )
    (part,) = replacement_conflicts(old, seeing(crop=(0, 80, 480, 480)))
    assert "keeps [0, 80, 480, 480] (top, left, height, width) of frames of 480 x 640" in part
    assert replacement_conflicts(old, seeing(2)) == ["it sees 2 frames of a camera at once instead of 1"]
