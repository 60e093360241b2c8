"""What one client, and all of them together, may have under way at a server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.shares import Client
from rql_deploy.runtime.server import inbox, quota
from rql_deploy.runtime.server.quota import Quota
from rql_deploy.runtime.server.server import INTERNAL, PolicyServer
from rql_deploy.runtime.wire.arrays import Layout
from rql_deploy.runtime.wire.headers import Act, ActMany, ActManyReply, ActReply
from tests.helpers.commands import LIFT_BUNDLE, wait_for
from tests.helpers.servers import observation, serving
from tests.helpers.wire import raw_message, read_header


class WatchedModel(Model):
    """Calls `on_compute` when the first request is computed."""

    on_compute: Callable[[], None]

    def encode(self, fields: Any) -> Any:
        self.on_compute()
        return super().encode(fields)

    def unrolled(self, fields: Any, noise: Any) -> Any:
        self.on_compute()
        return super().unrolled(fields, noise)


def answers(requests: dict[str, int]) -> dict[str, Counter[str]]:
    """Send that many requests per client to a server here that is told to stop while it computes the first.

    By client: how many were `computed`, and how many refused with which sentence.
    """
    model = WatchedModel(Bundle.open(LIFT_BUNDLE))
    header = {"contract": model.contract.contract_id}
    state = np.zeros(model.contract.plant.observation_dim, np.float32)
    with PolicyServer([model], "tcp://127.0.0.1:*") as server:
        model.on_compute = server.stop
        with contextlib.ExitStack() as stack:
            sockets = {}
            for name in requests:
                sockets[name] = stack.enter_context(server.context.socket(zmq.DEALER))
                sockets[name].linger = 0
                sockets[name].connect(INTERNAL)
            for name, count in requests.items():
                for number in range(count):
                    sockets[name].send(raw_message("act", header, state, id=number))
            server.run()
            found: dict[str, Counter[str]] = {}
            for name, socket in sockets.items():
                replies = [read_header(socket.recv(zmq.NOBLOCK)) for _ in range(requests[name])]
                found[name] = Counter(
                    "computed" if "seed" in reply else f"{reply['code']}: {reply['error']}"
                    for reply in replies
                )
    return found


def client(connection: str, peer: str = "10.0.0.1") -> Client:
    return Client(connection.encode(), peer)


def test_a_client_has_at_most_its_share_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_READING", "MAX_TAKING", "MAX_DROPPING"):
        monkeypatch.setattr(inbox, limit, 60.0)
    found = answers({"greedy": quota.MAX_IN_FLIGHT + 36, "modest": 3})
    refused = (
        f"busy: {quota.MAX_IN_FLIGHT} requests of this connection are under way already: wait for replies"
    )
    assert found == {"greedy": {"computed": quota.MAX_IN_FLIGHT, refused: 36}, "modest": {"computed": 3}}


def test_beyond_the_bound_of_all_clients_those_with_less_than_their_share_get_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "MAX_WAITING", 8)
    limited = Quota()
    for _ in range(8):
        assert limited.crowding(client("a")) is None
        limited.begin(client("a"))
    assert limited.crowding(client("a")) == (
        "8 requests are under way at this server, 8 of this connection: wait for replies"
    )
    # Another connection from the same address has half, one from another address, too.
    for name, peer in (("b", "10.0.0.1"), ("c", "10.0.0.2")):
        for number in range(2):
            assert limited.crowding(client(name, peer)) is None, (name, number)
            limited.begin(client(name, peer))
    for number in range(20):  # New connections change nothing beyond twice the bound.
        if limited.crowding(client(f"new {number}")) is None:
            limited.begin(client(f"new {number}"))
    assert limited.in_flight <= 16
    for _ in range(8):
        limited.end(client("a"))
    assert limited.crowding(client("d")) is None


def test_a_slot_is_free_again_when_its_request_was_answered() -> None:
    limited = Quota(max_in_flight=3)
    full = "3 requests of this connection are under way already: wait for replies"
    for _ in range(3):
        assert limited.crowding(client("a")) is None
        limited.begin(client("a"))
    assert limited.crowding(client("a")) == full
    assert limited.crowding(client("b")) is None
    limited.end(client("a"))
    assert limited.crowding(client("a")) is None
    limited.begin(client("a"))
    assert limited.crowding(client("a")) == full
    # More answers than requests, and those of strangers, leave nothing behind.
    for _ in range(5):
        limited.end(client("a"))
    limited.end(client("stranger"))
    assert limited.in_flight == 0
    for _ in range(3):
        assert limited.crowding(client("a")) is None
        limited.begin(client("a"))
    assert limited.crowding(client("a")) == full


def test_the_rate_allows_a_burst_of_half_a_second_and_fills_up_again() -> None:
    limited = Quota(max_rate=8.0)
    refused = [limited.rejection(client("a"), 100.0) for _ in range(6)]
    assert refused[:4] == [None] * 4
    assert refused[4:] == [refused[4]] * 2
    assert "more than 8 rows (requests x candidates) a second" in str(refused[4])
    # What was refused is not owed: an eighth of a second later one request may come again, and no second one.
    assert [limited.rejection(client("a"), 100.125) is None for _ in range(2)] == [True, False]
    # However long it was silent, half a second's worth is the most.
    assert [limited.rejection(client("a"), 1000.0) is None for _ in range(5)] == [True] * 4 + [False]


def test_connecting_anew_changes_little_and_another_peer_has_a_rate_of_its_own() -> None:
    limited = Quota(max_rate=8.0)
    taken = [limited.rejection(client(f"connection {i}"), 100.0) is None for i in range(50)]
    assert sum(taken) == 4 + 8 * quota.SPARE
    taken = [limited.rejection(client(f"connection {i}"), 101.0) is None for i in range(50, 100)]
    assert sum(taken) == 4 + 8 * quota.SPARE
    assert limited.rejection(client("x", "10.0.0.2"), 100.0) is None


def test_a_connection_that_uses_little_is_served_beside_one_that_uses_all_of_the_rate() -> None:
    limited = Quota(max_rate=80.0)
    served = {"greedy": 0, "modest": 0}
    for tick in range(4000):
        now = 100.0 + tick / 1000
        served["greedy"] += limited.rejection(client("greedy"), now) is None
        if tick % 200 == 199:
            served["modest"] += limited.rejection(client("modest"), now) is None
    assert served["modest"] == 20
    assert served["greedy"] <= 80 * 4.6


def test_rows_count() -> None:
    limited = Quota(max_rate=64.0)
    taken = [limited.rejection(client("a"), 100.0, 8) is None for _ in range(6)]
    assert taken == [True] * 4 + [False] * 2
    # What is left after larger requests were refused is there for a smaller one.
    assert limited.rejection(client("a"), 100.05, 8) is not None
    assert limited.rejection(client("a"), 100.05, 1) is None
    # More than the burst: when the bucket is full.
    assert limited.rejection(client("a"), 200.0, 256) is None
    assert limited.rejection(client("a"), 200.4, 256) is not None


def test_a_slow_rate_still_lets_one_request_through() -> None:
    limited = Quota(max_rate=0.5)
    assert [limited.rejection(client("a"), now) is None for now in (0.0, 1.0, 3.0)] == [True, False, True]
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"--max-rate is .*: pass rows per second") as caught:
            Quota(max_rate=rate)
        assert (caught.value.kind, caught.value.hint) == (
            "user error",
            "pass rows per second, more than 0",
        )


def test_the_longest_silent_without_requests_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_PEERS", 8)
    limited = Quota(max_rate=2.0, max_in_flight=1)
    peers = [client("c", str(i)) for i in range(8)]
    for i, name in enumerate(peers):
        # The higher the number, the longer silent.
        assert limited.rejection(name, 100.0 - i) is None
    limited.begin(peers[7])
    assert limited.rejection(peers[0], 100.0) is not None  # its burst of one is spent
    assert limited.clients == 8
    assert limited.rejection(client("c", "new"), 100.0) is None
    assert limited.clients == 7
    # A quarter went: 6 and 5, silent longest without a request under way. They start afresh, the others do
    # not.
    assert limited.crowding(peers[7]) is not None
    assert limited.rejection(peers[4], 96.0) is not None
    assert limited.rejection(peers[6], 94.0) is None


def test_a_peer_is_what_a_client_cannot_change_at_will() -> None:
    assert quota._peer_of("192.168.1.7") == "192.168.1.7"
    assert quota._peer_of("::ffff:192.168.1.7") == "192.168.1.7"
    assert quota._peer_of("2001:db8:1:2:3:4:5:6") == quota._peer_of("2001:db8:1:2::7")
    assert quota._peer_of("fe80::1%eth0") != quota._peer_of("fe80::2%eth0")
    assert quota._peer_of("::1") == "::1"
    assert quota._peer_of("localhost:1000:1000:71") == quota._peer_of("localhost:1000:1000:72")
    assert quota._peer_of("localhost:1000:1000:71") != quota._peer_of("localhost:1001:1001:71")


def test_a_process_that_connects_anew_keeps_its_rate(bundle: Path) -> None:
    with serving(bundle, "--max-rate", "10") as (address, _), zmq.Context() as context:
        start, computed = time.monotonic(), 0
        for _ in range(40):
            with context.socket(zmq.DEALER) as socket:
                socket.linger, socket.rcvtimeo = 0, 10_000
                socket.connect(address)
                for number in range(3):
                    socket.send(raw_message("ping", id=number))
                for _ in range(3):
                    computed += "code" not in read_header(socket.recv())
        assert computed <= 5 + 3 + 12.5 * (time.monotonic() - start) + 1


def test_seventeen_greedy_connections_leave_an_honest_client_its_share(bundle: Path) -> None:
    with (
        serving(bundle) as (address, _),
        RemotePolicy.connect(address) as policy,
        contextlib.ExitStack() as stack,
    ):
        sample = observation(policy.contract)
        sent = Layout(policy.contract.plant.fields).pack(sample)
        request = Act(contract=policy.contract.contract_id, candidates=256)
        policy.act(sample)
        for _ in range(17):
            channel = Channel(address)
            stack.callback(channel.close)
            for _ in range(64):
                channel.send(request, sent, time.monotonic() + 5, 5)
        for _ in range(20):
            policy.act(sample, deadline=1.5)


def test_a_batch_counts_its_observations_as_requests_and_as_rows() -> None:
    limited = Quota(max_in_flight=64)
    # What no connection may have under way piece by piece, it may ask for at once.
    assert limited.crowding(client("a"), 200) is None
    limited.begin(client("a"), 200)
    assert limited.in_flight == 200
    assert limited.crowding(client("a")) == (
        "200 requests of this connection are under way already: wait for replies"
    )
    assert limited.crowding(client("b"), 64) is None
    for _ in range(199):
        limited.end(client("a"))
    assert limited.crowding(client("a"), 63) is None
    assert limited.crowding(client("a"), 64) is not None
    limited.end(client("a"))
    assert limited.in_flight == 0


def test_a_batch_takes_its_observations_times_candidates_from_the_rate(bundle: Path) -> None:
    model = Model(Bundle.open(bundle))
    packed = Layout(model.contract.plant.fields).pack({"observation": np.zeros((10, 4))}, 10)
    request = ActMany(contract=model.contract.contract_id, candidates=4)
    codes: list[Any] = []
    # 100 rows a second are a burst of 50, and 25 beside it for one who has used little.
    with PolicyServer([model], "tcp://127.0.0.1:*", max_rate=100.0) as server:
        thread = threading.Thread(target=server.run)
        channel = Channel(server.endpoint)
        expiry = time.monotonic() + 20
        numbers = [channel.send(request, packed, expiry, 20.0) for _ in range(2)]
        thread.start()
        for number in numbers:
            try:
                codes.append(len(channel.receive(number, ActManyReply, expiry, 20.0)[0].seed))
            except ServerError as error:
                codes.append(error.code)
        channel.close()
        server.stop()
        thread.join()
    assert codes == [10, "busy"]


def test_what_a_client_that_is_gone_has_asked_for_is_not_computed() -> None:
    with serving(LIFT_BUNDLE) as (address, _), RemotePolicy.connect(address, timeout=30.0) as policy:
        contract = policy.contract
        fields = Layout.of(contract.plant).pack(observation(contract))
        many = Act(contract=contract.contract_id, candidates=256)
        for _ in range(4):
            channel = Channel(address)
            for _ in range(60):
                channel.send(many, fields, time.monotonic() + 5, 5)
            wait_for(lambda: policy.stats()["in_flight"] >= 50)
            channel.close()
        wait_for(lambda: policy.stats()["errors"].get("gone", 0) >= 100)
        wait_for(lambda: policy.stats()["in_flight"] == 0)
        # A connection that is open keeps what it asked for.
        channel = Channel(address)
        number = channel.send(many, fields, time.monotonic() + 5, 5)
        assert channel.receive(number, ActReply, time.monotonic() + 30, 30)[1]["actions"].size
        channel.close()
