"""Definitions and bytes of messages against rosbags, which knows ROS 2's own; names as ROS 2 mangles them."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import (
    COMMANDED,
    DEFINITIONS,
    OBSERVED,
    blank,
    dds_topic,
    dds_type,
    require_type,
    ros_topic,
    ros_type,
)
from rql_deploy.runtime.robots.dds import message_types

STORE = get_typestore(Stores.ROS2_HUMBLE)
SCALARS: dict[str, Any] = {"string": "böse", "bool": True, "int32": -7, "uint32": 7, "uint8": 200}


def spelt(field: Any) -> str:
    """A field's type in the words of our definitions."""
    kind, content = field
    if kind.name == "BASE":
        return str(content[0])
    return str(content) if kind.name == "NAME" else f"{spelt(content[0])}[]"


def filled(part: str, seed: list[int]) -> tuple[Any, Any]:
    """A value of a field's type for Cyclone DDS, and the same for rosbags; numbers go on from `seed`."""
    if part.endswith("[]"):
        inner = part.removesuffix("[]")
        ours, theirs = zip(*(filled(inner, seed) for _ in range(3)), strict=True)
        if inner == "uint8":
            return bytes(ours), np.array(theirs, np.uint8)
        return list(ours), np.array(theirs) if inner == "float64" else list(theirs)
    if part in DEFINITIONS:
        pairs = {name: filled(inner, seed) for name, inner in DEFINITIONS[part].items()}
        ours = message_types_once()[part](**{name: pair[0] for name, pair in pairs.items()})
        return ours, STORE.types[part](**{name: pair[1] for name, pair in pairs.items()})
    seed[0] += 1
    value = seed[0] / 8 if part == "float64" else SCALARS[part]
    return value, value


_made: dict[str, Any] = {}


def message_types_once() -> dict[str, Any]:
    return _made or _made.update(message_types()) or _made


def test_definitions_are_those_of_ros_2() -> None:
    for kind, fields in DEFINITIONS.items():
        theirs = {name: spelt(field) for name, field in STORE.fielddefs[kind][1]}
        assert dict(fields) == theirs, kind
        assert list(fields) == list(theirs)


@pytest.mark.parametrize("kind", sorted({*OBSERVED, *COMMANDED}))
def test_messages_are_encoded_to_ros_2_s_bytes_and_back(kind: str) -> None:
    ours, theirs = filled(kind, [0])
    data = ours.serialize(use_version_2=False)
    assert data == bytes(STORE.serialize_cdr(theirs, kind))
    back = type(ours).deserialize(bytes(STORE.serialize_cdr(theirs, kind)))
    assert asdict(back) == asdict(ours)
    empty = blank(kind, lambda name, values: message_types_once()[name](**values))
    assert STORE.deserialize_cdr(empty.serialize(use_version_2=False), kind)


def test_names_are_mangled_as_ros_2_does() -> None:
    assert dds_topic("/arm/joint_states") == "rt/arm/joint_states"
    assert dds_type("sensor_msgs/msg/JointState") == "sensor_msgs::msg::dds_::JointState_"
    assert ros_topic("rt/arm/joint_states") == "/arm/joint_states"
    assert ros_topic("rq/service") is None
    for kind in DEFINITIONS:
        assert ros_type(dds_type(kind)) == kind
    assert ros_type("Vendor::Thing") == "Vendor::Thing"


def test_a_type_that_is_not_known_is_answered_with_those_that_are() -> None:
    with pytest.raises(
        UserError, match=r"^here has the type 'x/msg/Y', which is not known here: write one of std"
    ):
        require_type("x/msg/Y", COMMANDED, "here")
    with pytest.raises(UserError, match="here has no type: write one of"):
        require_type("", COMMANDED, "here")
    assert blank("std_msgs/msg/Header") == SimpleNamespace(
        stamp=SimpleNamespace(sec=0, nanosec=0), frame_id=""
    )
