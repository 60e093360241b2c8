"""Whose an openpi connection is for the policy server, and how it follows an exchange of bundles."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import ObservationField
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.server.openpi import OpenpiEndpoint
from rql_deploy.runtime.server.quota import on_behalf_of
from rql_deploy.runtime.server.server import INTERNAL, PolicyServer


class SplitModel(Model):
    """The test bundle, whose observation comes as the fields `arm` and `gripper`, and more if need be."""

    def __init__(self, bundle: Bundle, *more: ObservationField):
        super().__init__(bundle, "policy")
        fields = (ObservationField("arm", (3,)), ObservationField("gripper", (1,)), *more)
        dim = sum(field.size for field in fields)
        self.contract = msgspec.structs.replace(
            self.contract,
            plant=msgspec.structs.replace(self.contract.plant, fields=fields),
            observation_mean=(0.0,) * dim,
            observation_std=(1.0,) * dim,
        )

    def encode(self, fields: Any) -> Any:
        return super().encode({"observation": np.concatenate([fields["arm"], fields["gripper"]], axis=1)})

    def unrolled(self, fields: Any, noise: Any) -> Any:
        return super().unrolled(
            {"observation": np.concatenate([fields["arm"], fields["gripper"]], axis=1)}, noise
        )


@contextlib.contextmanager
def served(bundle: Path, **options: Any) -> Iterator[tuple[PolicyServer, int]]:
    """A server here with an openpi endpoint, and the endpoint's port."""
    model = SplitModel(Bundle.open(bundle))
    model.warm_up(rounds=1)
    with PolicyServer([model], "tcp://127.0.0.1:*", **options) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        endpoint = OpenpiEndpoint(
            lambda address: Channel(INTERNAL, context=server.context, identity=on_behalf_of(address)),
            "127.0.0.1",
            0,
        )
        try:
            yield server, endpoint.port
        finally:
            endpoint.close()
            server.stop()
            thread.join()


SAMPLE = {"arm": np.zeros(3), "gripper": np.zeros(1)}


def test_an_open_connection_follows_a_bundle_with_another_field(bundle: Path) -> None:
    with served(bundle) as (server, port):
        policy = WebsocketClientPolicy("127.0.0.1", port)
        before = policy.infer(SAMPLE)["actions"].shape
        swapped = threading.Event()
        server.on_swap = lambda *_: swapped.set()
        server.schedule_swap("policy", SplitModel(Bundle.open(bundle), ObservationField("force", (1,))))
        assert swapped.wait(10)
        # Robots send what they have: the field may be there already.
        assert policy.infer({**SAMPLE, "force": np.zeros(1)})["actions"].shape == before
        for _ in range(2):
            with pytest.raises(RuntimeError, match="lacks field 'force'"):
                policy.infer(SAMPLE)
        assert policy.infer({**SAMPLE, "force": np.zeros(1)})["actions"].shape == before


def test_connecting_anew_makes_no_new_peer(bundle: Path) -> None:
    with served(bundle) as (server, port), contextlib.closing(Channel(server.endpoint)) as direct:
        before = direct.ask("stats", 5.0)["clients"]
        for _ in range(3):
            assert WebsocketClientPolicy("127.0.0.1", port).infer(SAMPLE)["actions"].size
        assert direct.ask("stats", 5.0)["clients"] == before + 1


def test_a_greeting_waits_where_its_peer_has_used_up_its_rate(bundle: Path) -> None:
    with served(bundle, max_rate=4.0) as (_, port):
        policy = WebsocketClientPolicy("127.0.0.1", port)
        with pytest.raises(RuntimeError, match="more than 4 rows"):
            for _ in range(20):
                policy.infer(SAMPLE)
        assert WebsocketClientPolicy("127.0.0.1", port).get_server_metadata()["action_dim"]
