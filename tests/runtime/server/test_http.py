"""The metrics endpoint under connections that send nothing, or a byte now and then."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

import pytest

from rql_deploy.runtime.server import http
from rql_deploy.runtime.server.http import MetricsServer
from tests.helpers.servers import get


def ready(operation: str) -> dict[str, Any]:
    return {"ready": True}


@pytest.mark.parametrize("count", [1, 100])
def test_dripping_connections_keep_nobody_from_an_answer(count: int) -> None:
    with (
        contextlib.closing(MetricsServer([ready], "127.0.0.1", 0)) as server,
        contextlib.ExitStack() as stack,
    ):
        port = int(server.address.rpartition(":")[2])
        before = threading.active_count()
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"G")
        for _ in range(5):
            start = time.monotonic()
            assert get(server.address + "/healthz")[0] == 200
            assert time.monotonic() - start < 2.0
        assert threading.active_count() - before <= http.MAX_CONNECTIONS + 2


def test_a_connection_ends_however_it_is_kept_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_LIMIT", 0.5)
    with contextlib.closing(MetricsServer([ready], "127.0.0.1", 0)) as server:
        with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as dripping:
            start = time.monotonic()
            with pytest.raises(OSError, match=r"reset|pipe"):
                while time.monotonic() - start < 10:
                    dripping.send(b"G")
                    time.sleep(0.05)
        assert get(server.address + "/readyz")[0] == 200


def test_a_server_that_does_not_answer_is_not_healthy_and_ends() -> None:
    hangs = threading.Event()
    server = MetricsServer([lambda operation: hangs.wait(1.0) or None], "127.0.0.1", 0)
    assert get(server.address + "/healthz")[0] == 503
    server.close()
