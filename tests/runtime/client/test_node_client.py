"""The second-language client (Node.js) against the real server."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.wire.addresses import has_ipv6
from rql_deploy.runtime.wire.keys import new_client
from tests.helpers.commands import ROOT, require_node
from tests.helpers.servers import serving

CLIENT = ROOT / "clients" / "node"


def test_the_node_client_gets_the_same_bytes_and_the_same_refusals(endpoint: str) -> None:
    require_node(CLIENT, "zeromq")
    elsewhere = {"name": "tcp://no-such-host.invalid:5555", "port": "tcp://127.0.0.1:65536"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        elsewhere["refused"] = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = ["node", "check.mjs", endpoint, json.dumps(elsewhere)]
    result = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    with RemotePolicy.connect(endpoint) as policy:
        fields = policy.contract.plant.fields
        sample = {f.name: (np.arange(f.size, dtype=np.float32) / 8).reshape(f.shape) for f in fields}
        ours = policy.act(sample, seed=7, value=True)
        assert theirs["contractId"] == policy.contract.contract_id
        # The seed that the server drew has reached JavaScript, and comes back, as it was.
        drawn = policy.act(sample, seed=theirs["drawn"]["seed"])
        assert np.array(theirs["drawn"]["actions"], np.float32).tobytes() == drawn.actions.tobytes()
    assert np.array(theirs["actions"], np.float32).tobytes() == ours.actions.tobytes()
    assert (theirs["shape"], theirs["value"], theirs["stepsUsed"]) == (
        list(ours.actions.shape),
        ours.value,
        ours.steps_used,
    )
    assert theirs["repeated"] is True
    failures = theirs["failures"]
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


def test_the_node_client_reaches_ipv6_and_is_told_about_keys(bundle: Path, tmp_path: Path) -> None:
    require_node(CLIENT, "zeromq")
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    new_client(tmp_path / "keys", "arm")
    with (
        serving(bundle, "--bind", "tcp://[::1]:*") as (address, _),
        serving(bundle, "--keys", str(tmp_path / "keys")) as (keyed, _),
    ):
        command = ["node", "check.mjs", address, json.dumps({"keyed": keyed})]
        result = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "the server asks for keys" in json.loads(result.stdout)["failures"]["keyed"]
