"""`rql-deploy doctor`: what is wrong with this machine, each with its cure."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from rql_deploy.cli.doctor import EXTRAS
from rql_deploy.runtime.wire.addresses import has_ipv6
from rql_deploy.runtime.wire.keys import new_client
from rql_deploy.workflows import machine_checks as checks
from tests.helpers.commands import ROOT, cli


def test_it_renders_computes_and_compares_versions_and_ends_with_what_it_found() -> None:
    # A rate so low that a busy machine's timers are good enough.
    result = cli(
        "doctor",
        "--json",
        "--control-rate",
        1,
        "--port",
        free_port(),
        "--require",
        "sim",
        "--require",
        "serve",
    )
    found = json.loads(result.stdout)
    by_subject = {finding["subject"]: finding for finding in found["findings"]}
    assert result.exit_code == 0, result.output
    assert found["problems"] == 0
    assert {
        "python",
        "base",
        "serve",
        "train",
        "sim",
        "rendering",
        "onnxruntime",
        "clock",
        "scheduling",
        "processors",
        "ports",
        "ipv6",
        "keys",
    } <= set(by_subject)
    assert "a frame in" in by_subject["rendering"]["text"]
    assert "CPUExecutionProvider" in by_subject["onnxruntime"]["text"]
    assert "numpy" in by_subject["base"]["text"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_taken_port_is_a_problem_and_a_policy_server_is_named(endpoint: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        (taken,) = checks.check_ports((other.getsockname()[1],))
    assert taken.status == "problem"
    assert "another --bind" in taken.cure
    if has_ipv6():
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
            (taken,) = checks.check_ports((other.getsockname()[1],))
        assert (taken.status, taken.text[:5]) == ("problem", "[::1]")
    (server,) = checks.check_ports((int(endpoint.rpartition(":")[2]),))
    assert server.status == "note"
    assert "a policy server answers there (tiny" in server.text


def test_packages_that_are_too_old_or_missing_come_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {
        "": ["numpy>=99"],
        "serve": ["no-such-package", "rql-deploy[recordings]"],
        "recordings": ["nor-this-one"],
        "train": ["click>=1"],
    }
    monkeypatch.setattr(checks, "requirements", lambda: asked)
    found = {f.subject: f for f in checks.check_versions(frozenset())}
    assert (found["base"].status, found["base"].cure) == ("problem", "pip install rql-deploy")
    assert "needed: >=99" in found["base"].text
    assert (found["serve"].status, found["serve"].cure) == ("note", "pip install 'rql-deploy[serve]'")
    assert found["train"].status == "ok"
    needed = {f.subject: f for f in checks.check_versions(frozenset({"serve"}))}
    assert needed["serve"].status == needed["recordings"].status == "problem"


def test_every_extra_may_be_required_and_is_explained() -> None:
    extras = set(checks.requirements()) - {"", "all"}
    assert set(EXTRAS) == extras
    page = (ROOT / "docs" / "install.md").read_text()
    assert [extra for extra in extras if f"`rql-deploy[{extra}]`" not in page] == []


def test_a_graphics_stack_that_does_not_work_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    (found,) = checks.check_rendering(True)
    assert found.status == "problem"
    assert "MUJOCO_GL" in found.cure


def test_keys_that_others_can_read_that_are_damaged_or_missing_are_problems(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert checks.check_keys(folder)[0].status == "problem"
    secret = new_client(folder, "arm1")
    assert [(f.status, "arm1" in f.text) for f in checks.check_keys(folder)] == [("ok", True)]
    assert checks.check_keys(secret)[0].status == "ok"
    os.chmod(secret, 0o644)
    assert [(f.status, f.cure) for f in checks.check_keys(folder)] == [("problem", f"chmod 600 {secret}")]
    os.chmod(secret, 0o600)
    os.chmod(folder / "server.key_secret", 0o640)
    assert any(f.status == "problem" and "chmod 600" in f.cure for f in checks.check_keys(folder))
    secret.write_text("nothing")
    assert checks.check_keys(secret)[0].status == "problem"


def test_timers_too_coarse_for_a_rate_are_a_problem() -> None:
    clock, scheduling = checks.check_timers(2000.0 * 1e6)
    assert clock.status == "ok"
    assert scheduling.status == "problem"
    assert "governor" in scheduling.cure
