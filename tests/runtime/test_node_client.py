"""The second-language client (Node.js) against the real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.runtime.client import RemotePolicy
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the client with its packages installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js with npm is not installed")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(ROOT / "clients" / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install the client's packages: {installed.stderr.strip()[-200:]}")
    return folder


def test_the_node_client_gets_the_same_bytes_and_the_same_refusals(endpoint: str, node_client: Path) -> None:
    command = ["node", "check.mjs", endpoint]
    result = subprocess.run(command, cwd=node_client, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    with RemotePolicy.connect(endpoint) as policy:
        fields = policy.contract.plant.fields
        sample = {f.name: (np.arange(f.size, dtype=np.float32) / 8).reshape(f.shape) for f in fields}
        ours = policy.act(sample, seed=7, value=True)
        assert theirs["contractId"] == policy.contract.contract_id
    assert np.array(theirs["actions"], np.float32).tobytes() == ours.actions.tobytes()
    assert (theirs["shape"], theirs["value"], theirs["stepsUsed"]) == (list(ours.actions.shape), ours.value, ours.steps_used)
    assert theirs["repeated"] is True
    assert theirs["failures"] == {"missing": "bad_observation", "late": "deadline"}
