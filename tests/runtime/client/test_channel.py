"""Requests and connections that come and go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import zmq

from rql_deploy.errors import DeadlineMissed
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.wire.headers import Act
from tests.helpers.wire import read_header


def test_a_request_is_not_kept_for_a_server_that_comes_later(tmp_path: Path) -> None:
    """What was asked without a connection ends at its deadline: a server that starts later never sees it."""
    endpoint = f"ipc://{tmp_path}/policy"
    channel = Channel(endpoint)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.rcvtimeo = 10_000
        try:
            with pytest.raises(DeadlineMissed, match=r"no connection to .* within 50 ms"):
                channel.call(Act(contract="", seed=1), {}, 0.05)
            router.bind(endpoint)
            channel.send(Act(contract="", seed=2), {}, time.monotonic() + 10.0, 10.0)
            assert read_header(router.recv_multipart()[1])["seed"] == 2
            assert router.poll(200) == 0
        finally:
            channel.close()
