"""Why a server does not answer: each reason has its own sentence, on all clients and commands."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rql_deploy.errors import UserError
from rql_deploy.runtime.client import diagnosis
from rql_deploy.runtime.client.diagnosis import find_reason
from rql_deploy.runtime.wire.keys import new_client
from tests.helpers.clients import CLIENTS
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import serving

both_clients = pytest.mark.parametrize("open_client", CLIENTS.values(), ids=CLIENTS)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file of a client that the server `keyed` allows."""
    return new_client(tmp_path_factory.mktemp("keys") / "keys", "arm")


@pytest.fixture(scope="module")
def keyed(bundle: Path, secret: Path) -> Iterator[str]:
    """A server with keys."""
    with serving(bundle, "--keys", str(secret.parent)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_every_reason_has_a_sentence_of_its_own(
    keyed: str, endpoint: str, closed_port: int, tmp_path: Path
) -> None:
    closed = f"tcp://127.0.0.1:{closed_port}"
    for where, keys, words in (
        ("tcp://no-such-host.invalid:5555", False, "'no-such-host.invalid' does not resolve"),
        (closed, False, f"connection refused): start one with `rql-deploy serve BUNDLE --bind {closed}`"),
        (f"ipc://{tmp_path}/absent", False, "there is no such socket): start one with"),
        ("tcp://[::1]", False, "no port from 1 to 65535"),
        (keyed, False, "the server asks for keys"),
        (keyed, True, "the server does not accept this key"),
        (endpoint, True, "the server has no keys, but this client does"),
        (endpoint, False, "does not answer in time"),
    ):
        assert words in find_reason(where, keys=keys)


@both_clients
def test_clients_tell_why_no_server_answers(
    open_client: Callable[..., Any], keyed: str, endpoint: str, secret: Path, closed_port: int
) -> None:
    with pytest.raises(UserError, match=f"no policy server answers at {endpoint} .*has no keys"):
        open_client(endpoint, keys=secret, timeout=1.0)
    where = [keyed, f"tcp://127.0.0.1:{closed_port}"]
    with pytest.raises(UserError, match=r"any of 2 addresses .*asks for keys.*; .*connection refused"):
        open_client(where, timeout=1.0)


def test_commands_tell_why_no_server_answers(
    keyed: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rql_deploy.workflows.monitor.TIMEOUT", 1.0)
    assert_refused(cli("top", "--once", "--connect", keyed), "asks for keys", "--keys")
    assert_refused(cli("top", "--once", "--connect", "tcp://no-such.invalid:5555"), "does not resolve")
    refused = cli("top", "--once", "--connect", f"tcp://127.0.0.1:{closed_port}")
    assert_refused(refused, "connection refused", "rql-deploy serve")
    assert_refused(cli("top", "--connect", "tcp://127.0.0.1:70000"), "no port from 1 to 65535")


def test_what_is_no_policy_server_is_told_from_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "LOOK_LIMIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        where = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        assert "is no policy server" in find_reason(where, keys=False)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as hung:
        port = hung.bind_to_random_port("tcp://127.0.0.1")
        assert "does not answer in time" in find_reason(f"tcp://127.0.0.1:{port}", keys=False)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "..", "x" * 300])
def test_a_name_that_cannot_be_one_is_told_too(host: str) -> None:
    assert "its spelling" in find_reason(f"tcp://{host}:5555", keys=False)


@both_clients
def test_a_name_server_that_hangs_holds_no_client_up(
    open_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def resolve(*_: object, **__: object) -> None:
        done.wait(8)
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    start = time.monotonic()
    with pytest.raises(UserError, match="no policy server answers"):
        open_client("tcp://slow.example:5555", timeout=0.3)
    assert time.monotonic() - start < 6
    done.set()
