"""Why a topic is silent, in one sentence, whatever discovery shows."""

from __future__ import annotations

import pytest

from rql_deploy.ros2.topic_map import QoS
from rql_deploy.runtime.robots.transport import Endpoint, why_silent

KIND = "sensor_msgs/msg/JointState"
GOOD = Endpoint(KIND, "reliable", "volatile")
LOSSY = Endpoint(KIND, "best_effort", "volatile")
TAKES_ANY, WANTS_RELIABLE = QoS("best_effort"), QoS("reliable")
WANTS_OLD = QoS("best_effort", "transient_local")


@pytest.mark.parametrize(
    ("qos", "others", "sends", "words"),
    [
        (TAKES_ANY, {}, False, "nobody publishes /a on here: start the robot's nodes"),
        (TAKES_ANY, {"/b": [GOOD]}, False, "nobody publishes /a on here (there is /b): start"),
        (TAKES_ANY, {"/b": [GOOD]}, True, "nobody subscribes to /a on here (there is /b): start"),
        (
            TAKES_ANY,
            {"/a": [Endpoint("x/msg/Y", "reliable", "volatile")]},
            False,
            "messages of x/msg/Y, the map",
        ),
        (WANTS_RELIABLE, {"/a": [LOSSY]}, False, "reliability best_effort, the map's qos asks for reliable"),
        (WANTS_OLD, {"/a": [GOOD]}, False, "durability volatile, the map's qos asks for transient_local"),
        (TAKES_ANY, {"/a": [GOOD]}, True, "asks for reliability reliable, the map's qos offers best_effort"),
        (WANTS_RELIABLE, {"/a": [GOOD]}, True, "has not connected yet: set a longer wait in the map"),
        (TAKES_ANY, {"/a": [GOOD]}, False, "is published on here, but no message came: start what feeds"),
    ],
)
def test_each_cause_has_its_sentence(
    qos: QoS, others: dict[str, list[Endpoint]], sends: bool, words: str
) -> None:
    said = why_silent("/a", KIND, qos, others, sends=sends, where="here")
    assert words in said and "\n" not in said


def test_a_publisher_that_fits_among_some_that_do_not_is_no_mismatch_of_types() -> None:
    found = {"/a": [Endpoint("x/msg/Y", "reliable", "volatile"), GOOD]}
    assert "no message came" in why_silent("/a", KIND, TAKES_ANY, found, sends=False, where="here")


def test_what_the_listener_says_of_other_policies_is_passed_on() -> None:
    said = why_silent("/a", KIND, TAKES_ANY, {"/a": [GOOD]}, sends=False, where="here", policy="deadline")
    assert said == "/a is published with another deadline than we take: change it at its publisher"
