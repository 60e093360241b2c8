"""The stock openpi-client package, unchanged, against our server."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.runtime.server.openpi import MAX_CONNECTIONS, Keepalive
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import get, note, observation, serving


@contextlib.contextmanager
def listening(bundle: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server with an openpi endpoint; its port, and the process."""
    with serving(bundle, "--openpi", "0", *options) as (_, process):
        yield int(note(process, r"openpi clients on ws://127.0.0.1:(\d+)")), process


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    with listening(bundle) as (port, _):
        yield port


@pytest.fixture(scope="module")
def contract(bundle: Path) -> Contract:
    return Bundle.open(bundle).contract


def test_the_stock_client_drives_our_policy(port: int, contract: Contract) -> None:
    policy = WebsocketClientPolicy("127.0.0.1", port)
    metadata = policy.get_server_metadata()
    assert metadata["contract_id"] == contract.contract_id
    assert metadata["action_horizon"] == contract.h
    for seed in range(3):
        answer = policy.infer({**observation(contract, seed), "prompt": "lift the cube"})
        assert answer["actions"].shape == (contract.h, contract.plant.action_dim)
        assert np.isfinite(answer["actions"]).all()
        assert answer["server_timing"]["infer_ms"] > 0
        # As openpi's server: from the second reply on.
        assert ("prev_total_ms" in answer["server_timing"]) == (seed > 0)
    # Another robot goes on beside the first one, and a web page is turned away.
    other = WebsocketClientPolicy("127.0.0.1", port)
    assert other.infer(observation(contract))["actions"].shape[0] == contract.h
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{port}", origin="http://somewhere.example")  # type: ignore[arg-type]


Change = Callable[[np.ndarray], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.astype(">f4"),
        lambda v: v.astype(">f8"),
        lambda v: v.astype(np.float16),
        lambda v: v.astype(">i2"),
        lambda v: v.tolist(),
        lambda v: list(v.astype(np.float32)),
        lambda v: v > 0,
    ],
    ids=["big-endian", "big-endian double", "half", "big-endian int", "list", "list of scalars", "bool"],
)
def test_a_field_may_have_any_real_dtype(port: int, contract: Contract, change: Change) -> None:
    policy = WebsocketClientPolicy("127.0.0.1", port)
    sample = {name: change(value) for name, value in observation(contract).items()}
    assert policy.infer(sample)["actions"].shape == (contract.h, contract.plant.action_dim)


@pytest.mark.parametrize(
    "extra",
    [
        np.array(["lift"]),
        "lift",
        b"lift",
        np.array(["2026-01-01"], "M8[D]"),
        np.zeros((2, 0)),
        {"nested": {"prompt": np.array([b"lift"])}},
        [np.zeros(2), "lift", None],
        None,
    ],
    ids=["text array", "text", "bytes", "dates", "empty", "nested", "mixed list", "nil"],
)
def test_what_the_contract_does_not_name_is_ignored(port: int, contract: Contract, extra: Any) -> None:
    policy = WebsocketClientPolicy("127.0.0.1", port)
    assert policy.infer({"prompt": extra, **observation(contract), b"\xff": 1})["actions"].size


def test_a_refused_observation_does_not_end_the_connection(port: int, contract: Contract) -> None:
    policy = WebsocketClientPolicy("127.0.0.1", port)
    sample = observation(contract)
    for wrong, words in (
        ({}, "lacks field 'observation'"),
        ({"obsrvation": np.zeros(4)}, "there is 'obsrvation'"),
        ({"observation": np.array(["a"])}, "'observation' cannot be read: its dtype is <U1"),
        ({"observation": {"inner": 1}}, "it is a map, not an array"),
        ({"observation": [[0.0], [1.0, 2.0]]}, "'observation' cannot be read"),
        ({"observation": [0.0] * 100_000}, "neither an array nor a list"),
        ({"observation": np.zeros(3)}, r"has shape \[3\], the contract says \[4\]"),
        ({"observation": np.full(4, 1e300)}, "NaN or infinity"),
        ([1, 2], "not openpi's msgpack map"),
    ):
        with pytest.raises(RuntimeError, match=words):
            policy.infer(wrong)  # type: ignore[arg-type]
        assert policy.infer(sample)["actions"].size
    for raw in (
        "text",
        b"",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\x00\xff\xff\xff" + b"\x90" * 64,
        b"\x81\xabobservation" + b"\x91" * 100_000,
        b"\x81\xabobservation\x83\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x00\xc4\x05dtype\xa1O",
        bytes(1000),
    ):
        policy._ws.send(raw)
        assert isinstance(policy._ws.recv(timeout=10), str)
    assert policy.infer(sample)["actions"].size


def test_a_message_that_is_too_large_ends_the_connection_with_its_own_code(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}", max_size=None) as raw:
        raw.recv(timeout=10)
        with contextlib.suppress(ConnectionClosed):
            raw.send(bytes(64 * 1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed):
            raw.recv(timeout=10)
        assert raw.close_code == 1009


def test_a_health_probe_is_answered_as_by_openpis_server(port: int) -> None:
    assert get(f"http://127.0.0.1:{port}/healthz") == (200, "OK\n")
    assert get(f"http://127.0.0.1:{port}/")[0] == 426


def test_clients_beyond_the_limit_are_told_to_come_again(port: int, contract: Contract) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 1):
            client = stack.enter_context(connect(f"ws://127.0.0.1:{port}", ping_interval=None))
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1013
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(ConnectionClosed):
            assert WebsocketClientPolicy("127.0.0.1", port).infer(observation(contract))["actions"].size
            break
        assert time.monotonic() < deadline


def mute_peer(port: int) -> socket.socket:
    """A WebSocket client that answers nothing: no ping, no close frame."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=30)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = ["Host: x", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}"]
    request = "\r\n".join(["GET / HTTP/1.1", *lines, "Sec-WebSocket-Version: 13", "", ""])
    peer.sendall(request.encode())
    assert peer.recv(15) == b"HTTP/1.1 101 Sw"
    return peer


def test_mute_peers_do_not_hold_the_server_up(bundle: Path) -> None:
    with listening(bundle) as (port, process), contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(mute_peer(port))
        for _ in range(3):  # have not even asked for a WebSocket
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        polite = stack.enter_context(connect(f"ws://127.0.0.1:{port}"))
        polite.recv(timeout=10)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            polite.recv(timeout=10)
        assert (polite.close_code, polite.close_reason) == (1001, "the server stops")
        assert process.wait(30) == 0
        # One after the other, each with a close time-out of 1 s, they would take 12 s.
        assert time.monotonic() - start < 9


def test_a_client_that_answers_no_ping_loses_its_place(bundle: Path) -> None:
    with listening(bundle, "--openpi-keepalive", "0.2:0.3") as (port, _), mute_peer(port) as peer:
        start = time.monotonic()
        while peer.recv(4096):
            pass
        assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("text", "expected"), [("20", (20, 20)), ("5:60", (5, 60)), ("0", (None, None)), ("0.5:2", (0.5, 2))]
)
def test_how_often_clients_are_pinged(text: str, expected: tuple[float | None, float | None]) -> None:
    assert Keepalive.parse(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "5:0", "5:inf", "1e9"])
def test_a_keepalive_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="--openpi-keepalive takes INTERVAL"):
        Keepalive.parse(text)


def test_a_keepalive_is_checked_before_anything_is_loaded(bundle: Path) -> None:
    assert_refused(cli("serve", bundle, "--openpi", "0", "--openpi-keepalive", "soon"), "--openpi-keepalive")
