"""How arrays lie in a message: any contract, any number of observations, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rql_deploy.contract import ObservationField
from rql_deploy.errors import ContractError
from rql_deploy.runtime.wire.arrays import ALIGNMENT, DTYPES, Layout, describe, read_named
from rql_deploy.runtime.wire.checks import ProtocolError

CAMERA = (
    ObservationField("camera", (2, 2, 3), dtype="uint8"),
    ObservationField("arm_pos", (3,)),
    ObservationField("depth", (2,), dtype="uint8"),
    ObservationField("gripper", ()),
)
SEEN: dict[str, Any] = {
    "camera": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "arm_pos": [1.0, 2.0, 3.0],
    "depth": [254, 255],
    "gripper": 0.5,
}


def block(packed: Any) -> bytes:
    return b"".join(packed.parts)


fields = st.lists(
    st.builds(
        ObservationField,
        st.text(max_size=8),
        st.lists(st.integers(1, 4), max_size=3).map(tuple),
        dtype=st.sampled_from(["float32", "uint8"]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda field: field.name,
)


@given(fields, st.none() | st.integers(0, 5), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_observations_of_any_contract_survive(
    contract: list[ObservationField], rows: int | None, seed: int
) -> None:
    rng, lead = np.random.default_rng(seed), () if rows is None else (rows,)
    sent = {
        field.name: (256 * rng.random((*lead, *field.shape))).astype(field.dtype)  # type: ignore[attr-defined]
        for field in contract
    }
    layout = Layout(contract)
    # Laid out otherwise in memory: what is sent is in C order all the same.
    packed = layout.pack({name: np.copy(value, order="F") for name, value in sent.items()}, rows)
    assert packed.rows == (1 if rows is None else rows)
    frame = bytes(ALIGNMENT) + block(packed)
    received = layout.read(frame, ALIGNMENT, packed.rows)
    assert received.keys() == sent.keys()
    for field in contract:
        value = received[field.name]
        assert (value.shape, value.dtype) == ((packed.rows, *field.shape), field.dtype)
        assert value.tobytes() == sent[field.name].tobytes()
        assert not value.flags.writeable
        assert value.size == 0 or np.shares_memory(value, np.frombuffer(frame, np.uint8))


def test_float32_fields_come_first_and_nothing_lies_between_fields() -> None:
    layout = Layout(CAMERA)
    assert [name for name, _, _ in layout.fields] == ["arm_pos", "gripper", "camera", "depth"]
    assert layout.row_bytes == 4 * 4 + 14
    numbers = np.array([1.0, 2.0, 3.0, 0.5], np.float32)
    assert block(layout.pack(SEEN)) == numbers.tobytes() + bytes([*range(12), 254, 255])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"arm_pos": None, "arm_poss": np.zeros(3)},
            "lacks field 'arm_pos' of shape [3] (there is 'arm_poss')",
        ),
        ({"gripper": None}, "lacks field 'gripper' of shape []"),
        ({"arm_pos": np.zeros(4)}, "field 'arm_pos' has shape [4], the contract says [3]"),
        ({"arm_pos": np.zeros((1, 3))}, "field 'arm_pos' has shape [1, 3], the contract says [3]"),
        ({"arm_pos": "left"}, "field 'arm_pos' is not an array of numbers"),
        ({"arm_pos": [[1.0], [2.0, 3.0], 4.0]}, "field 'arm_pos' is not an array of numbers"),
        ({"arm_pos": [1.0, object(), 3.0]}, "field 'arm_pos' is not an array of numbers"),
        ({"arm_pos": ["1", "2", "3"]}, "field 'arm_pos' is not an array of numbers (could not convert text)"),
        (
            {"arm_pos": np.array(["1", 2.0, 3.0], object)},
            "is not an array of numbers (could not convert text)",
        ),
        ({"arm_pos": np.array([1, 2, 3], "M8[D]")}, "has datetime64[D] values, the contract says float32"),
        ({"arm_pos": np.array([1, 2, 3], "m8[s]")}, "send real numbers"),
        ({"arm_pos": np.zeros(3, [("x", "f4")])}, "send real numbers"),
        ({"arm_pos": [10**400, 0, 0]}, "is not an array of numbers (int too large to convert to float)"),
        ({"depth": ["0", "1"]}, "field 'depth' is not an array of numbers (could not convert text)"),
        ({"depth": [0.5, 1.0]}, "field 'depth' has float64 values, the contract says uint8"),
        ({"depth": [0, 256]}, "field 'depth' has int64 values, the contract says uint8"),
        ({"depth": [-1, 0]}, "send integers from 0 to 255"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    given = {name: value for name, value in (SEEN | change).items() if value is not None}
    with pytest.raises(ContractError) as error:
        Layout(CAMERA).pack(given)
    assert words in str(error.value)


def test_what_is_not_finite_is_refused_by_name_and_bytes_may_be_anything() -> None:
    layout = Layout(CAMERA)
    for wrong in (np.nan, np.inf, -np.inf):
        frame = block(layout.pack({**SEEN, "gripper": wrong}))
        with pytest.raises(ContractError, match="field 'gripper' holds NaN or infinity"):
            layout.read(frame, 0)
    # As float32 these bytes are NaN.
    all_ones = layout.pack({**SEEN, "camera": np.full((2, 2, 3), 255)})
    assert layout.read(block(all_ones), 0)["camera"].min() == 255
    huge = {**SEEN, "arm_pos": np.full(3, 3e38)}
    assert layout.read(block(layout.pack(huge)), 0)["arm_pos"].min() > 2e38


@pytest.mark.parametrize(("size", "rows"), [(0, 1), (29, 1), (31, 1), (60, 1), (30, 2), (30, 0)])
def test_a_block_of_another_size_is_refused(size: int, rows: int) -> None:
    with pytest.raises(ProtocolError, match=f"the block has {size} bytes, {rows} observation") as error:
        Layout(CAMERA).read(bytes(size), 0, rows)
    assert error.value.code == "bad_array"


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.sampled_from([*DTYPES]).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        ),
        max_size=5,
    ),
    st.integers(0, 40),
)
@settings(max_examples=50, deadline=None)
def test_announced_arrays_survive_and_are_aligned(sent: dict[str, np.ndarray], place: int) -> None:
    frame = bytes(place)
    for array in sent.values():
        frame += bytes(-len(frame) % ALIGNMENT) + array.tobytes()
    received, end = read_named(frame, place, describe(sent))
    assert end == len(frame)
    assert received.keys() == sent.keys()
    for name, array in sent.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        assert received[name].tobytes() == array.tobytes()
        assert received[name].flags.aligned


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ([("a", "float32", [4])], "ends after the message"),
        ([("a", "float32", [-1])], "no valid shape"),
        ([("a", "uint8", [1] * 9)], "no valid shape"),
        ([("a", "uint8", [0, 2**40, 2**40])], "no valid shape"),
        ([("a", "uint8", [2**40, 2**40])], "no valid shape"),
        ([("a", "object", [1])], "unknown dtype: use one of float32"),
        ([("a", "uint8", [1]), ("a", "uint8", [1])], "comes twice"),
        ([(str(i), "uint8", [0]) for i in range(65)], "at most 64 arrays"),
    ],
)
def test_announced_arrays_that_cannot_be_are_refused(described: list[Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read_named(bytes(15), 0, described)


def test_objects_and_foreign_byte_orders_are_never_sent() -> None:
    for array in (np.array([object()]), np.zeros(2, ">f4"), np.zeros(2, np.float16)):
        with pytest.raises(ProtocolError, match="use one of float32"):
            describe({"a": array})
