"""Reading ahead: when messages were read, whose turn it is, and what is given up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import zmq

from rql_deploy.runtime.server import inbox as module
from rql_deploy.runtime.server.inbox import Inbox
from rql_deploy.runtime.wire import protocol


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a busy machine keeps."""
    for limit in ("MAX_READING", "MAX_TAKING", "MAX_DROPPING"):
        monkeypatch.setattr(module, limit, 10.0)


@pytest.fixture
def sockets() -> Iterator[tuple[zmq.Socket[bytes], list[zmq.Socket[bytes]]]]:
    """A ROUTER and three clients of its."""
    with zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.bind("inproc://here")
        clients = [context.socket(zmq.DEALER) for _ in range(3)]
        for socket in (router, *clients):
            socket.linger = 0
        for socket in clients:
            socket.connect("inproc://here")
        yield router, clients
        context.destroy(linger=0)


def test_everything_is_read_before_the_first_is_taken_in(sockets: tuple) -> None:  # type: ignore[type-arg]
    router, clients = sockets
    for number in range(50):
        clients[0].send(b"%d" % number)
    inbox = Inbox(router, keys=False, large=False)
    inbox.read(wait=False)
    read = time.monotonic()
    assert len(inbox) == 50
    assert not protocol.ready(router, protocol.READABLE)
    taken = list(inbox.take(busy=False))
    assert [message.frame for message in taken] == [b"%d" % number for number in range(50)]
    assert all(message.at <= read for message in taken)
    assert not inbox


def test_connections_take_turns(sockets: tuple) -> None:  # type: ignore[type-arg]
    router, clients = sockets
    for number in range(20):
        clients[0].send(b"greedy %d" % number)
    for socket in clients[1:]:
        socket.send(b"honest")
    inbox = Inbox(router, keys=False, large=False)
    inbox.read(wait=False)
    taken = [message.frame for message in inbox.take(busy=False)]
    assert taken[:3].count(b"honest") == 2
    assert [frame for frame in taken if frame != b"honest"] == [b"greedy %d" % number for number in range(20)]


def test_there_is_less_time_while_requests_are_under_way(
    sockets: tuple,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router, clients = sockets
    inbox = Inbox(router, keys=False, large=False)
    for number in range(100):
        clients[0].send(b"%d" % number)
    inbox.read(wait=False)
    for _ in inbox.take(busy=True):
        time.sleep(0.002)
    assert len(inbox) == 99
    monkeypatch.setattr(module, "MAX_TAKING", 0.2)
    for _ in inbox.take(busy=False):
        time.sleep(0.02)
    assert 80 < len(inbox) < 99


def test_what_waited_too_long_is_given_up_while_others_wait(sockets: tuple) -> None:  # type: ignore[type-arg]
    router, clients = sockets
    for _ in range(3):
        clients[0].send(b"late")
    inbox = Inbox(router, keys=False, large=False)
    inbox.read(wait=False)
    taking = inbox.take(busy=True)
    first = next(taking)
    time.sleep(0.03)
    assert not inbox.drops(0.05, first.at)
    assert len(list(taking)) == 0
    assert len(inbox) == 2
    found = [
        (inbox.drops(0.05, message.at), inbox.drops(None, message.at)) for message in inbox.take(busy=True)
    ]
    assert found == [(True, False), (True, False)]
    clients[0].send(b"another")
    only = inbox.read(wait=False)
    time.sleep(0.03)
    # There was time for all of them: what comes next is computed if it can be.
    assert only is not None
    assert not inbox.drops(0.05, only.at)
    assert not inbox


def test_what_is_read_ahead_is_bounded(sockets: tuple, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    router, clients = sockets
    monkeypatch.setattr(module, "MAX_MESSAGES", 5)
    for _ in range(9):
        clients[0].send(b"message")
    inbox = Inbox(router, keys=False, large=False)
    inbox.read(wait=False)
    assert len(inbox) == 5
    assert len(list(inbox.take(busy=False))) == 5
    monkeypatch.setattr(module, "MAX_BYTES", 14)
    inbox.read(wait=False)
    assert len(inbox) == 2
