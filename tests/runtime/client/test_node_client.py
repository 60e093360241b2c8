"""The second-language client (Node.js) against the real server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.runtime.client import RemotePolicy
from tests.helpers.commands import ROOT, require_node
from tests.helpers.servers import serving_images

CLIENT = ROOT / "clients" / "node"


def compare(endpoint: str) -> dict[str, Any]:
    """Hold the Node.js client's decision against the Python client's; what it refused."""
    command = ["node", "check.mjs", endpoint]
    result = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    with RemotePolicy.connect(endpoint) as policy:
        sample = {
            f.name: (255 - np.arange(f.size) if f.dtype == "uint8" else np.arange(f.size) / 8).reshape(
                f.shape
            )
            for f in policy.contract.plant.fields
        }
        ours = policy.act(sample, seed=7, value=True)
        assert theirs["contractId"] == policy.contract.contract_id
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
    assert compare(endpoint) == {"missing": "bad_observation", "late": "deadline"}
    with serving_images(bundle) as address:
        halves = "field 'camera' needs integers from 0 to 255"
        assert compare(address) == {"missing": "bad_observation", "late": "deadline", "halves": halves}
