import json
import shutil
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import write_manifest
from rql_deploy.contract import (
    ActionDimension,
    Calibration,
    Contract,
    ContractError,
    ImageField,
    ObservationField,
    PlantDescription,
    Provenance,
)
from rql_deploy.errors import BundleError
from tests.helpers.schemas import json_schema

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    fields = tuple(
        ObservationField(
            name,
            draw(st.tuples(st.integers(1, 4)) | st.tuples(st.integers(1, 3), st.integers(1, 3))),
            draw(names),
        )
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    )
    actions = tuple(
        ActionDimension(
            name,
            -draw(st.floats(0.1, 10)),
            draw(st.floats(0.1, 10)),
            hold=draw(st.sampled_from(["zero", "repeat"])),
        )
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    )
    plant = PlantDescription(
        draw(names),
        fields,
        actions,
        draw(st.floats(1, 1000)),
        {"kwargs": draw(st.dictionaries(names, numbers, max_size=2))},
    )
    dim = plant.observation_dim
    row = st.lists(numbers, min_size=dim, max_size=dim).map(tuple)
    return Contract(
        plant=plant,
        h=draw(st.integers(1, 10)),
        F=draw(st.integers(1, 20)),
        observation_mean=draw(row),
        observation_std=draw(st.lists(st.floats(1e-6, 1e6), min_size=dim, max_size=dim).map(tuple)),
        value_members=draw(st.integers(1, 10)),
        calibration=Calibration(
            (0.0, 1.0), {}, ((draw(numbers),), (draw(numbers),)), (draw(numbers),) * 2, (draw(numbers),) * 2
        ),
        provenance=Provenance(
            draw(names),
            draw(names),
            {},
            draw(st.integers(0, 2**31)),
            draw(st.integers(1, 10**9)),
            {"numpy": draw(names)},
        ),
    )


@given(contracts())
@settings(max_examples=60, deadline=None)
def test_any_contract_survives_its_json_with_the_same_id(contract: Contract) -> None:
    again = Contract.from_json(contract.to_json())
    assert again == contract
    assert again.contract_id == contract.contract_id


@given(contracts(), st.data())
@settings(max_examples=100, deadline=None)
def test_changing_any_one_entry_changes_the_id_or_is_refused(contract: Contract, data: st.DataObject) -> None:
    plain = json.loads(contract.to_json())
    node, key = plain, None
    while isinstance(node, dict | list) and len(node):
        parent, key = (
            node,
            data.draw(
                st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1)
            ),
        )
        node = node[key]
    parent[key] = (
        (node + 1 if isinstance(node, int | float) else node + "x")
        if isinstance(node, int | float | str)
        else 1
    )
    try:
        changed = Contract.from_json(json.dumps(plain))
    except ContractError:
        return
    # Adding one to a large float can leave it as it is; then it is no corruption.
    assert changed.contract_id != contract.contract_id or json.loads(contract.to_json()) == plain


def test_entries_unknown_missing_or_of_the_wrong_type_are_named(bundle: Path) -> None:
    plain = json.loads(Bundle.open(bundle).contract.to_json())

    def reason(**changes: object) -> str:
        with pytest.raises(ContractError) as error:
            Contract.from_json(json.dumps({**plain, **changes}))
        return str(error.value)

    assert "unknown entry 'valeu_members': did you mean value_members?" in reason(valeu_members=2)
    assert "contract.h should be a whole number, not 'five'" in reason(h="five")
    assert "schema version 99" in reason(schema_version=99)
    assert "scales 1 numbers but its fields have 4" in reason(observation_mean=[0.0])
    del plain["F"]
    assert "lacks the entry 'F'" in reason()


def test_fields_are_assembled_in_the_contracts_order_and_split_again(bundle: Path) -> None:
    base = Bundle.open(bundle).contract
    plant = msgspec.structs.replace(
        base.plant, fields=(ObservationField("b", (2,)), ObservationField("a", (1, 2)))
    )
    contract = msgspec.structs.replace(base, plant=plant)
    flat = contract.flatten({"a": [[3, 4]], "b": [1, 2], "unused": "text"})
    assert flat.tolist() == [1, 2, 3, 4]
    parts = contract.split(flat[None])
    assert {name: part.tolist() for name, part in parts.items()} == {"b": [[1, 2]], "a": [[[3, 4]]]}
    with pytest.raises(ContractError, match=r"lacks field 'b' of shape \[2\] \(there is 'bb'\)"):
        contract.flatten({"a": np.zeros((1, 2)), "bb": np.zeros(2)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"h": 0}, "has h = 0"),
        ({"F": -1}, "has F = -1"),
        ({"observation_std": [1.0, 0.0, 1.0, 1.0]}, "a scale that is not above 0"),
        ({"plant.control_rate": 0.0}, "control rate of 0 Hz"),
        ({"plant.actions": []}, "has no actions"),
        ({"plant.fields.0.name": "observation", "plant.fields.0.dtype": "float64"}, "dtype 'float64'"),
        ({"plant.actions.0.low": 1.0}, r"bounds [1, 1]"),
        ({"plant.actions.1.name": "action_0"}, "two actions of the name 'action_0'"),
        ({"calibration.value": [0.0]}, "1 calibration quantiles of value for 9 levels"),
        ({"calibration.levels": [1.0, 0.0]}, "do not rise"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(
    change: dict[str, object], words: str, bundle: Path
) -> None:
    plain = json.loads(Bundle.open(bundle).contract.to_json())
    for path, value in change.items():
        *parents, key = path.split(".")
        node = plain
        for parent in parents:
            node = node[int(parent) if parent.isdecimal() else parent]
        node[key] = value
    with pytest.raises(ContractError) as error:
        Contract.from_json(json.dumps(plain))
    assert words in str(error.value)


def test_a_deeply_nested_or_endless_contract_is_refused_without_a_crash() -> None:
    for text in ("[" * 100_000, "1" * 10_000, "9" * 17_000_000, '{"schema_version": 1e999}'):
        with pytest.raises(ContractError):
            Contract.from_json(text)


@given(contracts())
@settings(max_examples=30, deadline=None)
def test_any_contract_fits_the_published_schema(contract: Contract) -> None:
    jsonschema.validate(json.loads(contract.to_json()), json_schema(Contract))


def test_a_contract_edited_together_with_its_manifest_no_longer_fits_the_graphs(
    bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    contract = msgspec.structs.replace(Bundle.open(copy).contract, h=2)
    (copy / "contract.json").write_text(contract.to_json())
    write_manifest(copy, contract)
    with pytest.raises(BundleError, match="exported for another contract"):
        Bundle.open(copy).session("policy")


@pytest.fixture(scope="module")
def tiny_contract(bundle: Path) -> Contract:
    return Bundle.open(bundle).contract


def with_pictures(contract: Contract, *images: ImageField, frame_stack: int = 1) -> Contract:
    plant = msgspec.structs.replace(contract.plant, images=images, frame_stack=frame_stack)
    return msgspec.structs.replace(contract, plant=plant)


def test_pictures_are_part_of_a_contract_and_leave_others_as_they_were(tiny_contract: Contract) -> None:
    text = tiny_contract.to_json()
    assert "images" not in text and "frame_stack" not in text
    front = ImageField("front", 64, 96, "rgb", "realsense_0", 480, 640, (0, 80, 480, 480))
    contract = with_pictures(tiny_contract, front, frame_stack=3)
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.contract_id != tiny_contract.contract_id
    assert contract.plant.inputs == (
        *tiny_contract.plant.fields,
        ObservationField("front", (64, 96, 9), dtype="uint8"),
    )
    assert contract.plant.observation_dim == tiny_contract.plant.observation_dim


@pytest.mark.parametrize(
    ("images", "stack", "said"),
    [
        ((ImageField("front", 0, 4),), 1, "camera 'front' that is 0 x 4 pixels"),
        ((ImageField("front", 4, 2000),), 1, "sides must lie in 1 to 1024"),
        (
            (ImageField("front", 4, 4, crop=(0, 0, 5, 4)),),
            1,
            r"is cropped to \[0, 0, 5, 4\] of a frame of 4 x 4",
        ),
        ((ImageField("front", 4, 4), ImageField("front", 4, 4)), 1, "has two fields of the name 'front'"),
        (tuple(ImageField(f"c{i}", 4, 4) for i in range(5)), 1, "has 5 cameras, at most 4"),
        ((ImageField("front", 4, 4),), 9, "stacks 9 frames, between 1 and 8"),
    ],
)
def test_pictures_that_cannot_be_are_refused(
    tiny_contract: Contract, images: tuple[ImageField, ...], stack: int, said: str
) -> None:
    with pytest.raises(ContractError, match=said):
        with_pictures(tiny_contract, *images, frame_stack=stack)


def test_a_plant_with_another_camera_is_named(tiny_contract: Contract) -> None:
    contract = with_pictures(tiny_contract, ImageField("front", 64, 64))
    for other, said in (
        ((), "camera 'front' is missing"),
        ((ImageField("front", 64, 84),), "camera 'front' gives 64 x 84 pixels instead of 64 x 64"),
        ((ImageField("front", 64, 64, "bgr"),), "camera 'front' gives bgr instead of rgb"),
    ):
        with pytest.raises(ContractError, match=said):
            contract.require(msgspec.structs.replace(contract.plant, images=other))
    assumed = ImageField("front", 64, 64, "bgr", assumed=("colour_order",))
    contract.require(msgspec.structs.replace(contract.plant, images=(assumed,)))
