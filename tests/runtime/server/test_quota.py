"""The quota of one client: requests per second and in flight."""

import pytest

from rql_deploy.errors import UserError
from rql_deploy.runtime.server import quota
from rql_deploy.runtime.server.quota import Quota


def test_requests_in_flight_are_capped_per_client_until_one_is_answered() -> None:
    limited = Quota(max_rate=1000.0, max_in_flight=2)
    for _ in range(2):
        assert limited.rejection(b"a", 0.0) is None
        limited.begin(b"a")
    assert "2 requests are under way already" in str(limited.rejection(b"a", 0.0))
    assert limited.rejection(b"b", 0.0) is None
    limited.end(b"a")
    assert limited.rejection(b"a", 0.0) is None


def test_the_rate_allows_a_burst_of_half_a_second_and_recovers() -> None:
    limited = Quota(max_rate=10.0)
    verdicts = [limited.rejection(b"a", 0.0) for _ in range(6)]
    assert verdicts[:5] == [None] * 5
    assert "more than 10 requests a second" in str(verdicts[5])
    assert limited.rejection(b"a", 0.05) is not None
    assert limited.rejection(b"a", 0.2) is None


def test_silent_clients_are_dropped_before_those_with_requests_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "MAX_CLIENTS", 4)
    limited = Quota(max_rate=10.0, max_in_flight=1)
    for number in range(4):
        limited.rejection(bytes([number]), float(number))
    limited.begin(bytes([0]))
    limited.rejection(b"new", 4.0)
    assert limited.clients == 4
    assert limited.rejection(bytes([0]), 5.0) is not None, "its request is still counted"


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="--max-rate is 0: pass requests per second") as caught:
        Quota(max_rate=0.0)
    assert (caught.value.kind, caught.value.hint) == ("user error", "pass requests per second, more than 0")
