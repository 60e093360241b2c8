"""The rclpy package: its logic against a served policy and a stand-in for the node; its files read."""

from __future__ import annotations

import ast
import importlib
import os
import signal
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from rql_deploy.errors import UserError
from rql_deploy.ros2.robot import read_robot
from tests.helpers.commands import ROOT, wait_for
from tests.helpers.rclpy_modules import rclpy_modules
from tests.helpers.rclpy_stand_in import FakeNode, get_message
from tests.helpers.topic_maps import PUSH, SEEN, write_map

PACKAGE = ROOT / "clients" / "ros2"
sys.path.insert(0, str(PACKAGE))

from rql_deploy_ros2.driver import Driver, Settings  # noqa: E402
from rql_deploy_ros2.transport import NodeTransport  # noqa: E402


@pytest.fixture
def node() -> Iterator[FakeNode]:
    made = FakeNode(tuple(SEEN["names"]), PUSH["topic"])
    yield made
    made.destroy()


@pytest.fixture
def settings(endpoint: str, tmp_path: Path) -> Settings:
    path = write_map(tmp_path, {"observation": SEEN}, {"push": PUSH}, wait=0.5)
    limits = tmp_path / "limits.toml"
    limits.write_text('on_violation = "clamp"\n')
    return Settings(endpoint=endpoint, map=str(path), limits=str(limits), candidates=1)


@pytest.fixture
def driver(settings: Settings, node: FakeNode) -> Iterator[Driver]:
    logged: list[str] = []
    made = Driver(settings, NodeTransport(node, get_message, lambda qos: qos), logged.append)
    made.logged = logged  # type: ignore[attr-defined]
    yield made
    made.close()


def test_services_start_and_stop_the_policy(driver: Driver, node: FakeNode) -> None:
    assert driver.state()[:2] == (1, "not driving")
    assert driver.stop() == (False, "the policy does not drive")
    assert driver.start() == (True, "driving")
    assert driver.start()[0] is False
    wait_for(lambda: len(node.commands) > 5)
    level, text, figures = driver.state()
    assert (level, text) == (0, "driving") and figures["decisions"] >= 1
    assert driver.stop() == (True, "stopped; the robot holds")
    # Held at zero, and nothing after that.
    assert [abs(x) < 1e-6 for x in node.commands[-1].data] == [True, True]
    sent = len(node.commands)
    time.sleep(0.1)
    assert len(node.commands) == sent
    assert driver.logged[0].startswith("stopped after ")  # type: ignore[attr-defined]
    # Newest values and any publisher; any subscriber.
    assert node.profiles["/joint_states"].reliability == "best_effort"
    assert node.profiles[PUSH["topic"]].reliability == "reliable"
    assert driver.reset_fault() == (True, "no fault")


def test_what_is_missing_is_told_as_a_diagnostic(settings: Settings, node: FakeNode) -> None:
    node.silent = True
    driver = Driver(settings, NodeTransport(node, get_message, lambda qos: qos), print)
    driver.start()
    wait_for(lambda: not driver.driving)
    level, text, _ = driver.state()
    driver.close()
    assert level == 2
    assert "/joint_states is published on the network of policy, but no message came" in text
    assert node.commands == []


def test_a_robot_that_falls_silent_is_held(driver: Driver, node: FakeNode) -> None:
    driver.start()
    wait_for(lambda: len(node.commands) > 5)
    node.silent = True
    wait_for(lambda: not driver.driving)
    level, text, _ = driver.state()
    assert level == 2 and ("no message has come on /joint_states" in text or "observation too old" in text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_node_holds_the_robot_before_it_leaves_the_network(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """On stand-ins for rclpy's modules."""
    values = {field.name: getattr(settings, field.name) for field in fields(Settings)} | {"autostart": True}
    modules = rclpy_modules(tuple(SEEN["names"]), PUSH["topic"], values)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    main = importlib.import_module("rql_deploy_ros2.node").main
    del sys.modules["rql_deploy_ros2.node"]

    def unheard(*_: object) -> None:
        raise AssertionError("the node does not listen for signals")

    before = {known: signal.signal(known, unheard) for known in (signal.SIGINT, signal.SIGTERM)}

    def stop() -> None:
        wait_for(lambda: bool(modules["rclpy"].made) and len(modules["rclpy"].made[0].commands) > 5)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        main()
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
        thread.join()
    commands = modules["rclpy"].made[0].commands
    assert abs(commands[-2].data[0]) > 1e-6 or abs(commands[0].data[0]) > 1e-6
    assert [abs(x) < 1e-6 for x in commands[-1].data] == [True, True]


def test_parameters_that_do_not_fit_are_said(settings: Settings, node: FakeNode) -> None:
    transport = NodeTransport(node, get_message, lambda qos: qos)
    with pytest.raises(UserError, match="the parameter 'map' is empty"):
        Driver(Settings(), transport, print)
    other = {"push": PUSH | {"names": ["action_0", "action_x"]}}
    path = write_map(Path(settings.map).parent / "other", {"observation": SEEN}, other)
    for wrong in ({"limits": "none.toml"}, {"playback": "some"}, {"map": "none.toml"}, {"map": str(path)}):
        values = {field.name: getattr(settings, field.name) for field in fields(Settings)} | wrong
        with pytest.raises(UserError, match=r"none\.toml|no playback mode 'some'|has name 'action_x'"):
            Driver(Settings(**values), transport, print)  # type: ignore[arg-type]


def test_topics_of_others_are_found_and_our_own_are_not(node: FakeNode) -> None:
    transport = NodeTransport(node, get_message, lambda qos: qos)
    (publisher,) = transport.publishers()["/joint_states"]
    assert (publisher.type, publisher.reliability) == ("sensor_msgs/msg/JointState", "reliable")
    (subscriber,) = transport.subscribers()[PUSH["topic"]]
    assert subscriber.durability == "volatile"


def test_the_package_s_files_agree_with_each_other() -> None:
    manifest = ElementTree.parse(PACKAGE / "package.xml").getroot()
    name = manifest.findtext("name")
    assert name == "rql_deploy_ros2" and (PACKAGE / "resource" / name).is_file()
    declared = {entry.text for entry in manifest.iter("exec_depend")}
    used = set()
    for path in [*PACKAGE.rglob("*.py")]:
        for found in ast.walk(ast.parse(path.read_text())):
            if isinstance(found, ast.ImportFrom) and not found.level:
                used.add(str(found.module).partition(".")[0])
            elif isinstance(found, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in found.names}
    ours = {"rql_deploy", "setuptools", name}
    assert used - ours - set(sys.stdlib_module_names) <= declared
    parameters = yaml.safe_load((PACKAGE / "config" / "policy.yaml").read_text())["/**"]["ros__parameters"]
    assert parameters == {field.name: field.default for field in fields(Settings)}
    topics, description = read_robot(PACKAGE / "config" / "robot.toml")
    assert description.action_dim == 6 and topics.rate == 20
    setup = (PACKAGE / "setup.py").read_text()
    for file in ("launch/policy.launch.py", "config/policy.yaml", "config/robot.toml"):
        assert file in setup and (PACKAGE / file).is_file()
    # What the package's node is started by, and the rest without rclpy.
    assert "policy_node = {NAME}.node:main" in setup
    for logic in ("driver.py", "transport.py"):
        assert "import rclpy" not in (PACKAGE / name / logic).read_text()
