"""The second-language client (Node.js) against the real server."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.wire.addresses import has_ipv6
from rql_deploy.runtime.wire.keys import new_client
from tests.helpers.commands import ROOT, require_node
from tests.helpers.servers import serving, serving_images

CLIENT = ROOT / "clients" / "node"


def compare(endpoint: str, elsewhere: dict[str, str] | None = None) -> dict[str, Any]:
    """What the Node.js client refused, and heard `elsewhere`; its decision is held to the Python client's."""
    command = ["node", "check.mjs", endpoint, json.dumps(elsewhere or {})]
    result = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    with RemotePolicy.connect(endpoint) as policy:
        sample = {
            f.name: (np.arange(255, 255 - f.size, -1) % 256 if f.dtype == "uint8" else np.arange(f.size) / 8)
            for f in policy.contract.plant.inputs
        }
        sample = {f.name: sample[f.name].reshape(f.shape) for f in policy.contract.plant.inputs}
        ours = policy.act(sample, seed=7, value=True)
        assert theirs["contractId"] == policy.contract.contract_id
        # The seed that the server drew has reached JavaScript, and comes back, as it was.
        drawn = policy.act(sample, seed=theirs["drawn"]["seed"])
        assert np.array(theirs["drawn"]["actions"], np.float32).tobytes() == drawn.actions.tobytes()
        many = theirs["many"]
        assert [one["seed"] for one in many] == [7, theirs["drawn"]["seed"]]
        assert [one["actions"] for one in many] == [theirs["actions"], theirs["drawn"]["actions"]]
        assert many[0]["value"] == ours.value
        prefix = np.zeros((1, policy.contract.plant.action_dim))
        continued = policy.act(sample, seed=7, prefix=prefix, candidates=2, pessimism=1.0)
        assert np.array(theirs["continued"], np.float32).tobytes() == continued.actions.tobytes()
    assert np.array(theirs["actions"], np.float32).tobytes() == ours.actions.tobytes()
    assert (theirs["shape"], theirs["value"], theirs["stepsUsed"]) == (
        list(ours.actions.shape),
        ours.value,
        ours.steps_used,
    )
    assert theirs["repeated"] is True
    failures: dict[str, Any] = theirs["failures"]
    return failures


def test_the_node_client_gets_the_same_bytes_and_the_same_refusals(endpoint: str, bundle: Path) -> None:
    require_node(CLIENT, "zeromq")
    elsewhere = {"name": "tcp://no-such-host.invalid:5555", "port": "tcp://127.0.0.1:65536"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        elsewhere["refused"] = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    failures = compare(endpoint, elsewhere)
    for name, words in (
        ("missing", "bad_observation"),
        ("late", "deadline"),
        ("seed", "range"),
        ("name", "does not resolve"),
        ("port", "is not an address"),
        ("refused", "nothing listens there"),
    ):
        assert words in failures.pop(name)
    assert failures == {}
    with serving_images(bundle) as address:
        failures = compare(address)
    assert failures["halves"] == "field 'camera' needs integers from 0 to 255"
    assert failures.keys() == {"missing", "late", "seed", "halves"}


def test_the_node_client_sends_pictures(picture_bundle: Path) -> None:
    require_node(CLIENT, "zeromq")
    with serving(picture_bundle) as (endpoint, _):
        compare(endpoint)


def test_the_node_client_reaches_ipv6_and_is_told_about_keys(bundle: Path, tmp_path: Path) -> None:
    require_node(CLIENT, "zeromq")
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    new_client(tmp_path / "keys", "arm")
    with (
        serving(bundle, "--bind", "tcp://[::1]:*") as (address, _),
        serving(bundle, "--keys", str(tmp_path / "keys")) as (keyed, _),
    ):
        assert "the server asks for keys" in compare(address, {"keyed": keyed})["keyed"]


GONE = """
import { DeadlineMissed, RemotePolicy } from "./client.mjs";
const policy = await RemotePolicy.connect(process.argv[1]);
const ask = (deadlineMs) => {
  const fields = policy.inputs.map((f) => [f.name, new Float32Array(f.shape.reduce((a, b) => a * b, 1))]);
  return policy.act(Object.fromEntries(fields), { deadlineMs }).then(() => "answered", (error) =>
    error instanceof DeadlineMissed ? "missed" : error.message);
};
console.log(await ask(5000));
process.stdin.once("data", async () => {
  const heard = [await ask(100), await ask(100), ...await Promise.all([ask(200), ask(100)])];
  console.log(heard.join());
  process.exit(0);
});
"""


def test_the_node_client_misses_every_deadline_of_a_server_that_is_gone(bundle: Path) -> None:
    require_node(CLIENT, "zeromq")
    with serving(bundle) as (endpoint, server):
        command = ["node", "--input-type=module", "--eval", GONE, endpoint]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, cwd=CLIENT, text=True, **pipes) as node:
            assert node.stdout is not None and node.stdout.readline() == "answered\n"
            server.kill()
            server.wait()
            told, errors = node.communicate("now\n", timeout=30)
    assert (told, errors) == ("missed,missed,missed,missed\n", "")
