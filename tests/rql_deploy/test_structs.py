"""Typed files: what is refused and how the message reads, and what numpy's numbers become."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import ContractError, UserError
from rql_deploy.structs import Finite, Record, convert, to_plain, without_infinities


class Part(Record, frozen=True):
    size: Finite | None = None
    kind: Literal["small", "large"] = "small"


class Whole(Record, frozen=True):
    name: str
    parts: Mapping[str, Part] = msgspec.field(default_factory=dict)
    rows: tuple[tuple[Finite, ...], ...] = ()
    count: int = 0
    anything: Mapping[str, Any] = msgspec.field(default_factory=dict)


def test_numbers_become_what_the_type_says_and_the_rest_stays() -> None:
    whole = convert({"name": "a", "parts": {"x": {"size": 1}}, "anything": {"b": [1, None]}}, Whole, "file")
    assert whole == Whole("a", {"x": Part(1.0)}, anything={"b": [1, None]})
    assert isinstance(whole.parts["x"].size, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "file should be a table, not list"),
        ({}, "file lacks the entry 'name'"),
        ({"nam": "a"}, "file has an unknown entry 'nam': did you mean name?"),
        ({"name": 3}, "file.name should be text, not 3"),
        ({"name": "a", "count": 1.0}, "file.count should be a whole number, not 1.0"),
        ({"name": "a", "count": True}, "file.count should be a whole number, not True"),
        (
            {"name": "a", "parts": {"x": {"sise": 1}}},
            "file.parts.x has an unknown entry 'sise': did you mean size?",
        ),
        ({"name": "a", "parts": {"x": 1}}, "file.parts.x should be a table, not int"),
        (
            {"name": "a", "parts": {"x": {"size": "1"}}},
            "file.parts.x.size should be a finite number, not '1'",
        ),
        (
            {"name": "a", "parts": {"x": {"size": math.nan}}},
            "file.parts.x.size should be a finite number, not nan",
        ),
        (
            {"name": "a", "parts": {"x": {"kind": "huge"}}},
            "file.parts.x.kind should be 'small' or 'large', not 'huge'",
        ),
        ({"name": "a", "rows": [[1], [2, math.inf]]}, "file.rows[1][1] should be a finite number, not inf"),
        ({"name": "a", "rows": "12"}, "file.rows should be a list or table, not '12'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(data: Any, message: str) -> None:
    with pytest.raises(ContractError) as refused:
        convert(data, Whole, "file", ContractError)
    assert str(refused.value) == message


def test_only_the_beginning_of_a_long_value_is_shown() -> None:
    with pytest.raises(UserError) as refused:
        convert({"name": ["x" * 1000]}, Whole, "file")
    assert len(str(refused.value)) < 120


def test_numpy_numbers_are_written_as_numbers() -> None:
    plant = PlantDescription(
        "arm",
        (ObservationField(str(np.str_("position")), (np.int64(3),)),),  # type: ignore[arg-type]
        (ActionDimension("dx", np.float32(-0.5), np.float64(0.5)),),  # type: ignore[arg-type]
        np.int32(20),  # type: ignore[arg-type]
        {
            "gain": np.float32(2.0),
            "flags": np.array([1, 2]),
            np.str_("name"): np.str_("panda"),
            "on": np.bool_(True),
        },
    )
    plain = json.loads(json.dumps(to_plain(plant)))
    assert plain["fields"][0]["shape"] == [3]
    assert (plain["actions"][0]["low"], plain["actions"][0]["high"], plain["control_rate"]) == (-0.5, 0.5, 20)
    assert plain["environment"] == {"gain": 2.0, "flags": [1, 2], "name": "panda", "on": True}
    again = convert(plain, PlantDescription, "plant")
    assert again.control_rate == 20.0
    assert again.differences(plant) == plant.differences(again) == []


def test_infinities_are_text_because_json_has_no_number_for_them() -> None:
    data = {"a": [math.inf, -np.float32(math.inf)], "b": (math.nan, 1.0)}
    assert without_infinities(data) == {"a": ["Infinity", "-Infinity"], "b": ("NaN", 1.0)}


def test_what_has_no_json_form_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_plain({"a": object()})
