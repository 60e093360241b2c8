"""Which family an address belongs to, and who can reach it."""

from __future__ import annotations

import socket

import pytest

from rql_deploy.runtime.wire.addresses import (
    AddressError,
    bracketed,
    endpoint_needs_ipv6,
    is_loopback,
    names_a_host,
    needs_ipv6,
    parse,
)

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("families", "expected"),
    [((V6,), True), ((V6, V6), True), ((V4,), False), ((V6, V4), False), ((), False)],
)
def test_a_name_is_reached_over_ipv6_where_it_has_no_other_address(
    families: tuple[int, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(family,) for family in families])
    assert needs_ipv6("robot.example") is expected
    assert endpoint_needs_ipv6("tcp://robot.example:5555") is expected


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://[::1]:5555", True),
        ("tcp://[fe80::1%eth0]:5555", True),
        ("tcp://127.0.0.1:5555", False),
        ("tcp://eth0:0;[::1]:5555", True),
        ("ipc://[::1]:5555", False),
        ("tcp://::1:5555", False),
    ],
)
def test_an_address_needs_no_name_server(
    endpoint: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert endpoint_needs_ipv6(endpoint) is expected
    assert not names_a_host(endpoint)


def test_names_are_told_from_addresses() -> None:
    assert names_a_host("tcp://robot7:5555")
    assert not names_a_host("ipc:///run/policy")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "fe80::1%lo", "::ffff:10.0.0.1", "*", "localhost.example", ""]
)
def test_what_others_can_reach(host: str) -> None:
    assert not is_loopback(host)


def test_an_address_and_its_parts() -> None:
    for host in ("127.0.0.1", "robot7", "::1", "fe80::1%eth0"):
        assert parse(f"tcp://{bracketed(host)}:5555") == ("tcp", host, 5555)
    assert parse("ipc:///run/policy") == ("ipc", "/run/policy", 0)
    assert parse("tcp://*:*", listening=True) == ("tcp", "*", 0)
    for wrong in (
        "tcp://127.0.0.1:*",
        "tcp://[::1:5555",
        "tcp://[]:5555",
        "tcp://a:²",
        "tcp://",
        "://x:1",
        "",
    ):
        with pytest.raises(AddressError):
            parse(wrong)
