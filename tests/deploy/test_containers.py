"""The images, the compose example and the systemd unit: linted, and held to the command line they call."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from rql_deploy.cli import main
from tests.helpers.commands import ROOT, unavailable
from tests.helpers.deployment import DEPLOY, documents, instructions
from tests.helpers.sandbox import SOCKET

DOCKERFILE = ROOT / "Dockerfile"
TARGETS = ("robot", "serve", "train", "sim")
PINNED = re.compile(r"\S+:v?\d+\.\d+\.\d+\S*")
"""An image with a whole version."""


def require_module(name: str, package: str) -> None:
    if importlib.util.find_spec(name) is None:
        unavailable(f"{package} is not installed (make setup)")


def stages() -> dict[str, list[tuple[str, str]]]:
    """By name, the instructions of each stage, with those of the stage it begins with."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for keyword, value in instructions(DOCKERFILE):
        if keyword == "FROM":
            parent, _, name = value.partition(" AS ")
            assert name, f"FROM {value} has no name"
            found[name] = [*found.get(parent, [("FROM", parent)])]
        elif name:
            found[name].append((keyword, value))
    return found


def last(stage: list[tuple[str, str]], keyword: str) -> str:
    return [value for found, value in stage if found == keyword][-1]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        unavailable("hadolint is not installed (make setup)")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_run_as_a_user_of_their_own_from_a_pinned_base() -> None:
    found = stages()
    assert set(TARGETS) <= set(found)
    (base,) = [value for keyword, value in instructions(DOCKERFILE) if keyword == "ARG"][:1]
    assert PINNED.fullmatch(base.partition("=")[2]), base
    for target in TARGETS:
        stage = found[target]
        assert stage[0] == ("FROM", "${PYTHON_IMAGE}"), target
        assert last(stage, "USER") == "10001:10001", target
        assert last(stage, "ENTRYPOINT") == '["rql-deploy"]', target
        # Each takes the packages of its own name.
        assert last(stage, "COPY").startswith(f"--from={target}-packages "), target
    for keyword, value in instructions(DOCKERFILE):
        if keyword == "RUN" and "pip install" in value:
            assert "requirements" in value, f"not the locked set: {value}"
    documented = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith("#   docker build")]
    assert [re.findall(r"--target (\w+)", line) for line in documented] == [[target] for target in TARGETS]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the checkout from the builder: the last rule that fits counts."""
    keep = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#"):
            pattern = rule.removeprefix("!").removeprefix("**/")
            parts = path.split("/")
            whole = any(fnmatch.fnmatch("/".join(parts[: i + 1]), pattern) for i in range(len(parts)))
            if whole or (rule.startswith("**/") and any(fnmatch.fnmatch(part, pattern) for part in parts)):
                keep = rule.startswith("!")
    return not keep


def test_the_builder_gets_what_it_copies_and_nothing_else() -> None:
    copied = [
        source
        for keyword, value in instructions(DOCKERFILE)
        if keyword == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    for path in (".git", ".venv", "keys", "demo", "runs", "tests/conftest.py", "sim/__pycache__/x.pyc"):
        assert ignored(path), path
    # All that the wheel is made of is there (tests/test_packaging.py builds one from the same).
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "rql_deploy",
        "train",
        "export",
        "runtime",
        "sim",
    } <= set(copied)


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a `rql-deploy` command line; a wrong one is an error."""
    context = click.Context(main)
    command = main.get_command(context, words[0])
    assert command is not None, words
    return command.make_context(words[0], words[1:], parent=context).params


def test_the_compose_example_fits_its_schema_and_the_command_line() -> None:
    require_module("check_jsonschema", "check-jsonschema")
    path = DEPLOY / "compose.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (compose,) = documents(path)
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        if "build" in service:
            assert service["image"] == f"rql-deploy:{service['build']['target']}", name
            assert service["build"]["target"] in TARGETS
        else:
            assert PINNED.fullmatch(service["image"]), name
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).partition(":")[0]
            known = source in compose["volumes"] or (DEPLOY / source).exists()
            assert known, f"{name} mounts {source}, which is not there"
        assert not any(port.split(":")[0] not in ("127.0.0.1",) for port in service.get("ports", [])), name
    server = parsed(services["server"]["command"])
    assert server["keys"] is not None and server["bind"].endswith(":5555")
    robot = parsed(services["robot"]["command"])
    assert robot["endpoint"] == server["bind"].replace("0.0.0.0", "server")
    (targets,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    assert targets["scrape_configs"][0]["static_configs"][0]["targets"] == [
        server["metrics"].replace("0.0.0.0", "server")
    ]
    assert targets["rule_files"] == ["alerts.yml"]


def unit() -> dict[str, str]:
    lines = (DEPLOY / "systemd" / "rql-deploy.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_waits_for_what_the_server_says() -> None:
    entries = unit()
    words = shlex.split(entries["ExecStart"])
    assert parsed(words[1:])["metrics"] == "127.0.0.1:9100"
    assert entries["Type"] == "notify"
    # Longer than a dead worker takes to come back, and than the server takes to stop.
    from rql_deploy.runtime.server.signals import STOP_LIMIT
    from rql_deploy.runtime.server.supervisor import RESTART_DELAYS

    assert float(entries["WatchdogSec"]) > 2 * max(RESTART_DELAYS)
    assert float(entries["TimeoutStopSec"]) > STOP_LIMIT


BIND = """
import zmq
from rql_deploy.errors import UserError
from rql_deploy.runtime.server.listen import bind_socket, check_bind
bind = "tcp://127.0.0.1:*"
try:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        bind_socket(router, bind, check_bind(bind, False), None)
    print("bound")
except UserError as error:
    print(error)
"""


def test_the_unit_lets_the_server_listen() -> None:
    """Where ZeroMQ may not ask for the machine's interfaces, it aborts the process."""
    if SOCKET is None:
        pytest.skip("the system call's number is not known here")
    families = unit()["RestrictAddressFamilies"].split()
    for allowed, words in (
        (families, "bound"),
        ([name for name in families if name != "AF_NETLINK"], "add AF_NETLINK to RestrictAddressFamilies"),
    ):
        python = sys.executable
        command = [python, "-m", "tests.helpers.sandbox", ",".join(allowed), python, "-c", BIND]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert words in done.stdout, done.stderr


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here")
    copy = tmp_path / "rql-deploy.service"
    text = (DEPLOY / "systemd" / "rql-deploy.service").read_text()
    copy.write_text(text.replace("/opt/rql-deploy/bin/rql-deploy", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert "rql-deploy.service" not in done.stderr, done.stderr
