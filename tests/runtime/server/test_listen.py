"""Addresses that a server listens on: IPv6, ports in use, and what each refusal says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.server.listen import check_bind, check_listener, listen, open_listener
from rql_deploy.runtime.server.server import PolicyServer
from rql_deploy.runtime.wire.addresses import has_ipv6
from tests.helpers.clients import CLIENTS
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import get, note, observation, serving

ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture(scope="module")
def link_local() -> str:
    """An address of this machine that is only valid with the name of its interface."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines() if has_ipv6() else ():
        digits, _, _, _, _, interface = line.split()
        if digits.startswith("fe80"):
            groups = ":".join(digits[i : i + 4] for i in range(0, 32, 4))
            return f"{groups}%{interface}"
    pytest.skip("this machine has no link-local IPv6 address")


@ipv6
@pytest.mark.parametrize("workers", ["1", "2"])
def test_everything_listens_on_ipv6(bundle: Path, workers: str) -> None:
    options = ("--bind", "tcp://[::1]:*", "--metrics", "[::1]:0", "--openpi", "[::1]:0", "--workers", workers)
    with serving(bundle, *options) as (address, process):
        assert address.startswith("tcp://[::1]:")
        url = note(process, r"metrics on (http://\[::1\]:\d+)/metrics")
        port = int(note(process, r"openpi clients on ws://\[::1\]:(\d+)"))
        for where in (address, [address, "tcp://[::1]:9"]):
            for open_client in CLIENTS.values():
                with open_client(where) as policy:
                    sample = observation(policy.contract)
                    assert policy.act(sample, deadline=5.0).actions.size
        assert get(url + "/healthz")[0] == 200
        assert WebsocketClientPolicy("[::1]", port).infer(sample)["actions"].size
        assert "ready" in cli("top", "--connect", address, "--once").output


@ipv6
def test_all_addresses_take_connections_of_both_kinds(bundle: Path) -> None:
    with serving(bundle, "--bind", "tcp://[::]:*", "--insecure") as (address, _):
        port = address.rpartition(":")[2]
        for host in ("[::1]", "127.0.0.1", "localhost"):
            RemotePolicy.connect(f"tcp://{host}:{port}").close()
    listener, address = listen("tcp://[::]:*")
    with listener:
        for host in ("::1", "127.0.0.1"):
            socket.create_connection((host, int(address.rpartition(":")[2])), timeout=5).close()


@ipv6
def test_a_link_local_address_needs_its_scope(bundle: Path, link_local: str) -> None:
    with serving(bundle, "--bind", f"tcp://[{link_local}]:*", "--insecure") as (address, _):
        RemotePolicy.connect(address).close()
    listener, address = listen(f"tcp://[{link_local}]:*")
    with listener:
        assert address == f"tcp://[{link_local}]:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1", "tcp://[::ffff:127.0.0.1]:*"]
)
def test_loopback_is_open_without_keys(address: str) -> None:
    assert check_bind(address, insecure=False).host


@pytest.mark.parametrize(
    "address",
    ["tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://[fe80::1%lo]:1", "tcp://[::ffff:0.0.0.0]:1"],
)
def test_the_network_needs_keys_or_insecure(address: str) -> None:
    with pytest.raises(UserError, match="open to the network"):
        check_bind(address, insecure=False)
    assert check_bind(address, insecure=True) == check_bind(address, insecure=False, keys=True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:5555", "does not begin with tcp://"),
        ("ws://127.0.0.1:5555", "does not begin with tcp://"),
        ("tcp://127.0.0.1", "no port from 1 to 65535"),
        ("tcp://127.0.0.1:0", "no port from 1 to 65535"),
        ("tcp://127.0.0.1:65536", "no port from 1 to 65535"),
        ("tcp://127.0.0.1:" + "9" * 5000, "no port from 1 to 65535"),
        ("tcp://127.0.0.1:x", "no port from 1 to 65535"),
        ("tcp://[::1]", "no port from 1 to 65535"),
        ("tcp://::1:5555", r"needs brackets, as in \[::1\]"),
        ("tcp://[127.0.0.1]:5555", "'127.0.0.1' is not an IPv6 address"),
        ("tcp://:5555", "has no host"),
    ],
)
def test_what_is_no_address_is_told_why(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_bind(address, insecure=True)
    if not address.startswith("ws:"):
        for open_client in CLIENTS.values():
            with pytest.raises(UserError, match=f"is not an address to connect to .*{words}"):
                open_client(address, timeout=0.2)


def test_other_listeners_take_a_port_or_an_address() -> None:
    assert check_listener("--metrics", "9100", False) == ("127.0.0.1", 9100)
    assert check_listener("--metrics", "0", False) == ("127.0.0.1", 0)
    assert check_listener("--openpi", "[::1]:0", False) == ("::1", 0)
    assert check_listener("--openpi", "*:8000", True) == ("*", 8000)
    for wrong in ("::1:8000", "65536", "host", "[::1]", "-1", ""):
        with pytest.raises(UserError, match="--openpi takes PORT, HOST:PORT"):
            check_listener("--openpi", wrong, True)
    assert check_listener("--openpi", ":8000", False) == ("127.0.0.1", 8000)
    with pytest.raises(UserError, match=r"not '::1' .an IPv6 address needs brackets"):
        check_listener("--openpi", "::1", False)
    for exposed in ("[::]:8000", "*:8000", "0.0.0.0:0"):
        with pytest.raises(UserError, match="open to the network"):
            check_listener("--openpi", exposed, False)


@pytest.mark.parametrize("option", ["--metrics", "--openpi"])
def test_an_empty_address_is_not_left_out(bundle: Path, option: str) -> None:
    # As a script gives it, whose variable is not set.
    refused = cli("serve", bundle, "--bind", "tcp://192.0.2.1:1", "--insecure", option, "")
    assert_refused(refused, f"{option} takes PORT, HOST:PORT")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("option", ["--bind", "--metrics", "--openpi"])
def test_a_port_in_use_is_told_from_an_address_that_is_not_here(
    option: str, bundle: Path, taken: int
) -> None:
    scheme = "tcp://" if option == "--bind" else ""
    bind = () if option == "--bind" else ("--bind", "tcp://127.0.0.1:*")
    for address, words in (
        (f"127.0.0.1:{taken}", ("in use", "another port")),
        # An address for documentation, which no machine has (RFC 5737).
        (f"192.0.2.1:{taken}", ("no such address", "ip address")),
        (f"no-such-host.invalid:{taken}", ("no such address", "ip address")),
    ):
        refused = cli("serve", bundle, *bind, option, f"{scheme}{address}", "--insecure")
        assert_refused(refused, "cannot listen on", *words)


def test_workers_are_told_the_same(taken: int) -> None:
    with pytest.raises(UserError, match=r"cannot listen on .*in use.*--bind with another port"):
        listen(f"tcp://127.0.0.1:{taken}")
    with pytest.raises(UserError, match="no such address"):
        open_listener("--openpi", "192.0.2.1", taken)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_path_in_use_is_refused_and_its_server_goes_on(bundle: Path, tmp_path: Path, workers: str) -> None:
    name = f"@rql-deploy-{tmp_path.name}-{workers}" if workers == "2" else f"{tmp_path}/policy"
    with serving(bundle, "--bind", f"ipc://{name}", "--workers", workers) as (address, _):
        with pytest.raises(UserError, match=r"in use.*another server"):
            PolicyServer([Model(Bundle.open(bundle))], address)
        with pytest.raises(UserError, match="in use"):
            listen(address)
        with RemotePolicy.connect(address) as policy:
            assert policy.act(observation(policy.contract), deadline=5.0).actions.size


def test_a_file_at_the_path_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    precious = tmp_path / "notes.txt"
    precious.write_text("do not touch")
    with pytest.raises(UserError, match=r"a file of another kind.*another path"):
        PolicyServer([Model(Bundle.open(bundle))], f"ipc://{precious}")
    assert precious.read_text() == "do not touch"


def test_workers_share_a_free_path() -> None:
    listener, address = listen("ipc://*")
    with listener, socket.socket(socket.AF_UNIX) as client:
        path = Path(address.removeprefix("ipc://"))
        assert path.is_absolute()
        client.connect(str(path))
        path.unlink()
