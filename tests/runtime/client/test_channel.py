"""Requests and connections that come and go."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client import ServerError, shared_socket
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.wire.headers import Act, Ping, PingReply
from rql_deploy.runtime.wire.protocol import decode, encode, send
from tests.helpers.clients import CLIENTS
from tests.helpers.commands import wait_for
from tests.helpers.wire import raw_message, read_header


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


@pytest.mark.parametrize("connect", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ([msgspec.msgpack.encode({"v": 1, "id": 1, "ok": False})], "protocol 1, this side speaks protocol 2"),
        ([raw_message("hello", version=3)], "protocol 3, this side speaks protocol 2: update this side"),
        ([raw_message("hello"), b"more"], "not protocol 2"),
    ],
)
def test_a_server_that_speaks_otherwise_is_told_apart_from_none(
    reply: list[bytes], words: str, connect: Callable[..., Any], tmp_path: Path
) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.rcvtimeo = 10_000
        router.bind(f"ipc://{tmp_path}/policy")

        def answer() -> None:
            client, asked = router.recv_multipart()
            # A message of protocol 2 or later is matched to its request.
            ids = asked[8:24] if len(reply[0]) > 24 and reply[0].startswith(b"RQL") else b""
            router.send_multipart([client, reply[0][:8] + ids + reply[0][8 + len(ids) :], *reply[1:]])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServerError, match=words):
            connect(f"ipc://{tmp_path}/policy", timeout=10.0)
        thread.join()


def test_asking_whether_there_is_a_connection_loses_no_reply(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger, router.rcvtimeo = 0, 10_000
        router.bind(f"ipc://{tmp_path}/server")
        channel = Channel(f"ipc://{tmp_path}/server")
        expiry = time.monotonic() + 5.0
        numbers = [channel.send(Ping(), {}, expiry, 5.0) for _ in range(3)]
        for _ in numbers:
            client, frame = router.recv_multipart()
            head = decode(frame)
            reply = PingReply(requests=1, errors=0, ready=True)
            send(router, encode(reply, id=head.id, epoch=head.epoch), client=client)
        time.sleep(0.1)
        assert channel.connected
        router.close()
        wait_for(lambda: not channel.connected)
        for number in numbers:
            assert channel.receive(number, PingReply, expiry, 5.0)[0].requests == 1
        channel.close()


@pytest.mark.parametrize("open_client", CLIENTS.values(), ids=CLIENTS)
def test_a_context_that_gives_no_socket_is_named(open_client: Callable[..., Any], endpoint: str) -> None:
    ended = zmq.Context()
    ended.term()
    with pytest.raises(UserError, match="this ZeroMQ context is terminated: pass another"):
        open_client(endpoint, context=ended)
    with zmq.Context() as full:
        full.set(zmq.MAX_SOCKETS, 1)
        with (
            full.socket(zmq.PAIR),
            pytest.raises(UserError, match=r"no socket can be opened \(Too many open"),
        ):
            open_client(endpoint, context=full)


def test_a_process_without_descriptors_says_so(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(shared_socket.sockets, "socketpair", none_left)
    with pytest.raises(UserError, match=r"no socket can be opened \(Too many open files\): close policies"):
        Channel(endpoint)
