"""Several server processes behind one endpoint."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.server.listen import listen
from rql_deploy.runtime.wire.keys import new_client
from tests.helpers.commands import assert_refused, cli, wait_for
from tests.helpers.servers import get, note, observation, serving, variant


def children(process: int) -> list[int]:
    """Worker processes of a server."""
    pids = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return [pid for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_workers_share_an_endpoint_and_one_that_dies_is_replaced(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    arm = new_client(keys, "arm")
    options = ("--workers", "2", "--keys", str(keys), "--metrics", "0", "--openpi", "0")
    with serving(bundle, *options) as (address, process):
        url = note(process, r"metrics on (\S+)/metrics")
        port = int(note(process, r"openpi clients on ws://127.0.0.1:(\d+)"))
        policies: list[RemotePolicy] = []
        while {policy.stats()["worker"] for policy in policies} != {0, 1}:
            assert len(policies) < 60
            policies.append(RemotePolicy.connect(address, keys=arm))
        sample = observation(policies[0].contract, 1)
        expected = {policy.act(sample, seed=1).actions.tobytes() for policy in policies}
        assert len(expected) == 1
        assert WebsocketClientPolicy("127.0.0.1", port).infer(sample)["actions"].shape == (
            policies[0].contract.h,
            2,
        )
        page = get(url + "/metrics")[1]
        assert 'rql_deploy_up{worker="0"} 1.0' in page
        assert 'rql_deploy_requests_total{operation="act",worker="1"}' in page
        assert get(url + "/healthz")[0] == get(url + "/readyz")[0] == 200

        before = children(process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        for policy in policies:
            # A call on the dead one's connection raises at its deadline; a later one goes to a worker that
            # lives, on a busy machine not always the next.
            decisions: list[bytes] = []

            def answered(policy: RemotePolicy = policy, decisions: list[bytes] = decisions) -> bool:
                start = time.monotonic()
                with contextlib.suppress(DeadlineMissed):
                    decisions.append(policy.act(sample, seed=1, deadline=0.5).actions.tobytes())
                assert time.monotonic() - start < 2.0
                return bool(decisions)

            wait_for(answered)
            assert decisions[0] in expected
        wait_for(lambda: get(url + "/healthz")[0] == 200)
        assert len(set(children(process.pid)) - set(before)) == 1
        for policy in policies:
            policy.close()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        assert "1 workers were started again" in process.stdout.read()


def test_a_bundle_is_swapped_in_all_workers_and_a_restarted_one_serves_the_same(
    bundle: Path, successor: Path, tmp_path: Path
) -> None:

    place = tmp_path / "bundle"
    shutil.copytree(bundle, place)
    contract = Bundle.open(bundle).contract
    slower = msgspec.structs.replace(
        contract, plant=msgspec.structs.replace(contract.plant, control_rate=10.0)
    )
    other = variant(bundle, tmp_path / "other", slower, scale=1.0)
    new_id = Bundle.open(successor).contract.contract_id
    with serving(place, "--workers", "2", "--bind", f"ipc://{tmp_path}/policy") as (address, process):
        policies = [RemotePolicy.connect(address) for _ in range(8)]
        sample = observation(contract, 1)
        shutil.rmtree(place)
        shutil.copytree(successor, place)
        process.send_signal(signal.SIGHUP)

        def all_have_it() -> bool:
            for policy in policies:
                policy.act(sample, seed=1, deadline=5.0)
            return all(policy.contract.contract_id == new_id for policy in policies)

        wait_for(all_have_it)
        shutil.rmtree(place)
        shutil.copytree(other, place)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert "control rate is 10 Hz" in note(process, r'"worker refused".*"reason": "(.*?)"')
        for policy in policies:
            for _ in range(3):
                try:
                    assert policy.act(sample, seed=1, deadline=2.0).deltas
                    break
                except DeadlineMissed:
                    continue
            policy.close()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def runs(pid: int) -> bool:
    """Whether the process is there, and not only its exit status."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_with_the_supervisor(bundle: Path) -> None:
    with serving(bundle, "--workers", "2") as (_, process):
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(runs, workers)))


def test_a_worker_that_hangs_does_not_hold_up_a_second_signal(bundle: Path) -> None:
    with serving(bundle, "--workers", "2") as (_, process):
        os.kill(children(process.pid)[0], signal.SIGSTOP)
        process.terminate()
        time.sleep(0.6)
        assert process.poll() is None, "it waits for its workers"
        process.terminate()
        assert process.wait(timeout=10) == 130


def test_what_workers_cannot_serve_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    assert_refused(cli("serve", tmp_path / "none", "--workers", "2", "--bind", "tcp://127.0.0.1:*"), "none")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"cannot listen on .*another port"),
    ):
        listen(f"tcp://127.0.0.1:{taken.getsockname()[1]}")
    path = tmp_path / "policy"
    first, _ = listen(f"ipc://{path}")
    with pytest.raises(UserError, match="cannot listen"):
        listen(f"ipc://{path}")
    first.close()
    listen(f"ipc://{path}")[0].close()  # The socket file of a killed server is replaced.
