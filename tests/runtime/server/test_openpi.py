"""The stock openpi-client package, unchanged, against our server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from rql_deploy.bundle.bundle import Bundle
from tests.helpers.servers import note, observation, serving


def test_the_stock_client_drives_our_policy(bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    with serving(bundle, "--openpi", "0") as (_, process):
        port = int(note(process, r"openpi clients on ws://127.0.0.1:(\d+)"))
        policy = WebsocketClientPolicy("127.0.0.1", port)
        metadata = policy.get_server_metadata()
        assert metadata["contract_id"] == contract.contract_id
        assert metadata["action_horizon"] == contract.h
        for seed in range(3):
            answer = policy.infer({**observation(contract, seed), "prompt": "lift the cube"})
            assert answer["actions"].shape == (contract.h, contract.plant.action_dim)
            assert np.isfinite(answer["actions"]).all()
            assert answer["server_timing"]["infer_ms"] > 0
        with pytest.raises(RuntimeError, match="lacks field 'observation'"):
            policy.infer({"state": np.zeros(4)})
        # Another robot goes on while the first one is gone, and a web page is turned away.
        assert (
            WebsocketClientPolicy("127.0.0.1", port).infer(observation(contract))["actions"].shape[0]
            == contract.h
        )
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{port}", origin="http://somewhere.example")  # type: ignore[arg-type]
