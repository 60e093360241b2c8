"""The second-language client (Node.js) against the real server."""

from __future__ import annotations

import json
import subprocess

import numpy as np

from rql_deploy.runtime.client import RemotePolicy
from tests.helpers.commands import ROOT, require_node

CLIENT = ROOT / "clients" / "node"


def test_the_node_client_gets_the_same_bytes_and_the_same_refusals(endpoint: str) -> None:
    require_node(CLIENT, "zeromq")
    command = ["node", "check.mjs", endpoint]
    result = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    with RemotePolicy.connect(endpoint) as policy:
        fields = policy.contract.plant.fields
        sample = {f.name: (np.arange(f.size, dtype=np.float32) / 8).reshape(f.shape) for f in fields}
        ours = policy.act(sample, seed=7, value=True)
        assert theirs["contractId"] == policy.contract.contract_id
    assert np.array(theirs["actions"], np.float32).tobytes() == ours.actions.tobytes()
    assert (theirs["shape"], theirs["value"], theirs["stepsUsed"]) == (
        list(ours.actions.shape),
        ours.value,
        ours.steps_used,
    )
    assert theirs["repeated"] is True
    assert theirs["failures"] == {"missing": "bad_observation", "late": "deadline"}
