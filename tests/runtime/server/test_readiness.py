"""How a server tells its parent, or systemd, that it is ready and lives: real descriptors and sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.server.readiness import ServiceManager, check_descriptor
from tests.helpers.commands import assert_refused, run_cli, wait_for
from tests.helpers.servers import announced, get


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """systemd's end: a datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(address)
        end.settimeout(30)
        yield end


def next_told(end: socket.socket, name: str) -> str:
    """The value of the next state of that name."""
    while True:
        for line in end.recv(4096).decode().splitlines():
            key, _, value = line.partition("=")
            if key == name:
                return value


def test_ready_fd_says_what_listens_where_and_is_closed(bundle: Path) -> None:
    with announced(bundle, "--metrics", "0", "--openpi", "0") as (ready, _):
        contract = Bundle.open(bundle).contract
        assert (ready["task"], ready["contract_id"]) == (contract.plant.task, contract.contract_id)
        assert get(f"{ready['metrics']}/readyz")[0] == 200
        host, _, port = ready["openpi"].removeprefix("ws://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        with RemotePolicy.connect(ready["endpoint"]) as policy:
            assert policy.contract == contract
        # `announced` has read to the end of the pipe: nobody holds it open.


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_descriptor_that_is_not_open_is_refused(bundle: Path) -> None:
    assert_refused(
        run_cli("serve", bundle, "--bind", "tcp://127.0.0.1:*", "--ready-fd", 77),
        "--ready-fd 77 cannot be written to (Bad file descriptor)",
        "open a pipe",
    )
    with pytest.raises(UserError, match=r"cannot be written to \(no descriptor has such a number\)"):
        check_descriptor(10**12)


def test_systemd_hears_that_the_server_is_ready_lives_and_stops(bundle: Path, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    options = ("--workers", "2", "--openpi", "0")
    with manager(address) as end, announced(bundle, *options, **environment) as (ready, process):
        assert ready["openpi"].startswith("ws://127.0.0.1:") and ready["metrics"] is None
        first = end.recv(4096).decode().splitlines()
        assert first == ["READY=1", f"STATUS=serving {ready['task']} on {ready['endpoint']}"]
        assert [next_told(end, "WATCHDOG") for _ in range(3)] == ["1"] * 3
        # One worker that hangs is enough: its clients would wait for ever.
        hung, *_ = [pid for pid in children(process.pid) if "spawn_main" in command_of(pid)]
        os.kill(hung, signal.SIGSTOP)
        try:
            # A question to it takes a second, and one may have been under way.
            wait_for(lambda: silent(end, 1.0))
        finally:
            os.kill(hung, signal.SIGCONT)
        assert next_told(end, "WATCHDOG") == "1"
        process.send_signal(signal.SIGTERM)
        assert next_told(end, "STOPPING") == "1"
        assert process.wait(timeout=20) == 0


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def silent(end: socket.socket, seconds: float) -> bool:
    """Whether nothing comes for so long; takes what has come."""
    end.settimeout(seconds)
    try:
        end.recv(4096)
    except TimeoutError:
        return True
    finally:
        end.settimeout(30)
    return False


def test_no_sign_of_life_is_given_for_a_server_that_does_not_answer() -> None:
    name = f"rql-deploy-{os.getpid()}"
    answers = iter([True, False, False, True])
    with manager(f"\0{name}") as end:
        told = ServiceManager({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "80000"})
        assert told.limit == 0.08
        with told.watching("serving", lambda: next(answers, False)):
            assert end.recv(4096) == b"READY=1\nSTATUS=serving"
            assert end.recv(4096) == b"WATCHDOG=1"
            assert end.recv(4096) == b"WATCHDOG=1"
            time.sleep(0.2)
        assert end.recv(4096).startswith(b"STOPPING=1")


def test_what_systemd_did_not_ask_this_process_for_is_not_done(tmp_path: Path) -> None:
    for environment, limit in (
        ({}, 0.0),
        ({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "5000000"}, 5.0),
        ({"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": str(2**64 - 1)}, 0.0),
        ({"WATCHDOG_USEC": "9" * 400}, 0.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
    ):
        told = ServiceManager(environment)
        assert (told.tell("READY=1"), told.limit) == (False, limit)


def test_a_reader_that_is_gone_does_not_stop_the_server(bundle: Path) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "rql_deploy", "serve", str(bundle), "--bind", "tcp://127.0.0.1:*"]
    with subprocess.Popen(
        [*command, "--ready-fd", str(writer)], stdout=subprocess.PIPE, text=True, pass_fds=(writer,)
    ) as process:
        os.close(writer)
        os.close(reader)
        assert process.stdout is not None
        endpoint = process.stdout.readline().split(" on ")[1].strip()
        with RemotePolicy.connect(endpoint) as policy:
            assert policy.stats()["ready"]
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_a_full_queue_does_not_lose_that_the_server_is_ready() -> None:
    name = f"rql-deploy-full-{os.getpid()}"
    with manager(f"\0{name}") as end, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=of another", f"\0{name}")
        told = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        assert not told.tell("WATCHDOG=1")
        threading.Timer(0.2, lambda: [end.recv(4096) for _ in range(2)]).start()
        with told.watching("serving", lambda: True):
            assert next_told(end, "READY") == "1"
