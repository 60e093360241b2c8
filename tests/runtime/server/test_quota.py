"""What one client, and all of them together, may have under way at a server."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.server import quota
from rql_deploy.runtime.server import server as servers
from rql_deploy.runtime.server.quota import Quota
from rql_deploy.runtime.server.server import INTERNAL, PolicyServer
from tests.helpers.commands import LIFT_BUNDLE
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


def test_a_client_has_at_most_its_share_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MAX_RECEIVED_PER_STEP", 1000)
    found = answers({"greedy": quota.MAX_IN_FLIGHT + 36, "modest": 3})
    refused = f"busy: {quota.MAX_IN_FLIGHT} requests are under way already: wait for replies"
    assert found == {"greedy": {"computed": quota.MAX_IN_FLIGHT, refused: 36}, "modest": {"computed": 3}}


def test_beyond_the_bound_of_all_clients_requests_wait_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MAX_WAITING", 8)
    found = answers({"a": 10, "b": 10})
    total = found["a"] + found["b"]
    # Those that were not taken in before the stop were never queued.
    assert total["computed"] == 8
    assert [(text.partition(":")[0], count) for text, count in total.items() if text != "computed"] == [
        ("draining", 12)
    ]


def test_a_slot_is_free_again_when_its_request_was_answered() -> None:
    limited = Quota(max_in_flight=3)
    full = "3 requests are under way already: wait for replies"
    for _ in range(3):
        assert limited.rejection(b"a", 0.0) is None
        limited.begin(b"a")
    assert limited.rejection(b"a", 0.0) == full
    assert limited.rejection(b"b", 0.0) is None
    limited.end(b"a")
    assert limited.rejection(b"a", 0.0) is None
    limited.begin(b"a")
    assert limited.rejection(b"a", 0.0) == full
    # More answers than requests, and those of strangers, leave nothing behind.
    for _ in range(5):
        limited.end(b"a")
    limited.end(b"stranger")
    limited.begin(b"stranger")
    assert limited.clients == 2
    for _ in range(3):
        assert limited.rejection(b"a", 0.0) is None
        limited.begin(b"a")
    assert limited.rejection(b"a", 0.0) == full


def test_the_rate_allows_a_burst_of_half_a_second_and_fills_up_again() -> None:
    limited = Quota(max_rate=8.0)
    refused = [limited.rejection(b"a", 100.0) for _ in range(6)]
    assert refused[:4] == [None] * 4
    assert refused[4:] == ["more than 8 requests a second: slow down"] * 2
    # What was refused is not owed: an eighth of a second later one request may come again, and no second one.
    assert [limited.rejection(b"a", 100.125) is None for _ in range(2)] == [True, False]
    # However long it was silent, half a second's worth is the most.
    assert [limited.rejection(b"a", 1000.0) is None for _ in range(5)] == [True] * 4 + [False]


def test_a_slow_rate_still_lets_one_request_through() -> None:
    limited = Quota(max_rate=0.5)
    assert [limited.rejection(b"a", now) is None for now in (0.0, 1.0, 3.0)] == [True, False, True]
    for rate in (0.0, -1.0):
        with pytest.raises(UserError, match=r"--max-rate is .*: pass requests per second") as caught:
            Quota(max_rate=rate)
        assert (caught.value.kind, caught.value.hint) == (
            "user error",
            "pass requests per second, more than 0",
        )


def test_the_longest_silent_without_requests_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_CLIENTS", 8)
    limited = Quota(max_rate=2.0, max_in_flight=1)
    names = [b"%d" % i for i in range(8)]
    for i, name in enumerate(names):
        # The higher the number, the longer silent.
        assert limited.rejection(name, 100.0 - i) is None
    limited.begin(b"7")
    assert limited.rejection(b"0", 100.0) is not None  # its burst of one is spent
    assert limited.clients == 8
    assert limited.rejection(b"new", 100.0) is None
    assert limited.clients == 7
    # A quarter went: 6 and 5, silent longest without a request under way. They start afresh, the others do
    # not.
    assert limited.rejection(b"7", 101.0) == "1 requests are under way already: wait for replies"
    assert limited.rejection(b"4", 96.0) is not None
    assert limited.rejection(b"6", 94.0) is None


def test_somebody_is_forgotten_even_when_all_have_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_CLIENTS", 8)
    limited = Quota()
    for i in range(8):
        limited.rejection(b"%d" % i, float(i))
        limited.begin(b"%d" % i)
    assert limited.rejection(b"new", 9.0) is None
    assert limited.clients == 7
