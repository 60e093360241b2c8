"""Keys, quotas, and what malformed messages can do."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.wire.keys import new_client, revoke
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import observation, serving
from tests.helpers.wire import raw_message, read_header

MALFORMED = int(os.environ.get("RQL_DEPLOY_FUZZ", "2000"))
"""Malformed messages at a live server; `RQL_DEPLOY_FUZZ=20000` for a long run."""


def test_keys_are_made_listed_and_revoked_by_name(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert "move it to that robot" in cli("keys", "new", "arm1", "--keys", keys).output
    assert cli("keys", "new", "arm2", "--keys", keys).exit_code == 0
    for path in keys.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert [line.split()[0] for line in cli("keys", "list", "--keys", keys).output.splitlines()] == [
        "arm1",
        "arm2",
    ]
    assert_refused(cli("keys", "new", "arm1", "--keys", keys), "has a key for 'arm1' already")
    assert_refused(cli("keys", "new", "../arm", "--keys", keys), "cannot name a client")
    assert_refused(cli("keys", "revoke", "arm3", "--keys", keys), "has no client 'arm3'")
    assert cli("keys", "revoke", "arm1", "--keys", keys).exit_code == 0
    assert [line.split()[0] for line in cli("keys", "list", "--keys", keys).output.splitlines()] == ["arm2"]


def test_only_allowed_keys_are_answered_and_a_revoked_one_is_cut_off(bundle: Path, tmp_path: Path) -> None:
    keys, others = tmp_path / "keys", tmp_path / "others"
    arm, stranger = new_client(keys, "arm"), new_client(others, "stranger")
    with serving(bundle, "--keys", str(keys)) as (address, _):
        with pytest.raises(UserError, match="no policy server answers"):
            RemotePolicy.connect(address, timeout=0.7)
        # The right server key with a client key that the server does not know.
        server_line = next(line for line in arm.read_text().splitlines() if "server-key" in line)
        old_line = next(line for line in stranger.read_text().splitlines() if "server-key" in line)
        stranger.write_text(stranger.read_text().replace(old_line, server_line))
        with pytest.raises(UserError, match="answers only clients whose key it allows"):
            RemotePolicy.connect(address, keys=stranger, timeout=0.7)
        with RemotePolicy.connect(address, keys=arm) as policy:
            policy.act(observation(policy.contract))
            revoke(keys, "arm")
            deadline = time.monotonic() + 5
            with pytest.raises(DeadlineMissed):
                while time.monotonic() < deadline:
                    policy.act(observation(policy.contract), deadline=0.5)


def test_keys_that_others_can_read_are_refused(bundle: Path, tmp_path: Path) -> None:
    new_client(tmp_path, "arm")
    (tmp_path / "server.key_secret").chmod(0o644)
    assert_refused(cli("serve", bundle, "--keys", tmp_path), "can be read by others", "chmod 600")
    assert_refused(cli("serve", bundle, "--keys", tmp_path / "none"), "is not a key file")


def test_a_client_beyond_its_rate_is_rejected_and_others_are_served(bundle: Path) -> None:
    with serving(bundle, "--max-rate", "50") as (address, _), RemotePolicy.connect(address) as greedy:
        codes = []
        for _ in range(60):
            try:
                greedy.act(observation(greedy.contract))
            except ServerError as error:
                codes.append(error.code)
        assert set(codes) == {"busy"}
        with RemotePolicy.connect(address) as modest:
            modest.act(observation(modest.contract))


def malformed(source: random.Random, good: bytes, contract_id: str) -> list[bytes]:
    """Frames of a message that is wrong somehow."""
    kind = source.randrange(8)
    if kind == 0:
        return [source.randbytes(source.randrange(300)) for _ in range(source.randrange(1, 6))]
    frame = bytearray(good)
    if kind == 1:
        # Of the id and the epoch, which may be anything, no byte.
        place = source.choice([*range(8), *range(24, len(frame))])
        frame[place] = source.randrange(256)
    elif kind == 2:
        del frame[source.randrange(len(frame)) :]
    elif kind == 3:
        return [good, *[b"x"] * source.randrange(1, 80)]
    elif kind == 4:
        frame += source.randbytes(source.randrange(1, 40))
    elif kind == 5:
        frame[-16:] = np.full(4, np.nan, np.float32).tobytes()
    else:
        values = [None, -1, 2**63, 1e300, "x", [], {}, True, b"\xff", [[1, 2]], [0.5, 0.5]]
        values.append([["x", "int32", [4]]])
        keys = ["budget", "candidates", "seed", "value", "stream", "prune", "deltas", "first", "bundle"]
        keys += ["contract", "f", "x", "arrays", "rows", "candidats"]
        entries = {source.choice(keys): source.choice(values) for _ in range(3)}
        operation = source.choice(
            ["act", "refine", "value", "hello", "stats", "reset", "episode", 0, 77, 130]
        )
        return [raw_message(operation, {"contract": contract_id, **entries}, good[-16:])]
    return [bytes(frame)]


def final_reply(socket: zmq.Socket[bytes]) -> bool:
    """Take one reply; False for a preview: a mutation can turn a request into a streamed one."""
    frames = socket.recv_multipart()
    assert len(frames) == 1
    if not frames[0].startswith(b"RQL"):
        # Garbage may look like a message of protocol 1, whose sender reads no other.
        assert msgspec.msgpack.decode(frames[0])["code"] == "version"
        return True
    return bool(read_header(frames[0]).get("last", True))


def test_malformed_messages_do_not_affect_other_clients(bundle: Path) -> None:
    source = random.Random(0)
    with (
        serving(bundle, "--max-rate", "1000000") as (address, process),
        RemotePolicy.connect(address) as policy,
    ):
        sample = observation(policy.contract, 1)
        expected = policy.act(sample, seed=1).actions
        contract_id = policy.contract.contract_id
        good = raw_message("act", {"contract": contract_id}, sample["observation"].astype(np.float32))
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(address)
            answered = 0
            for number in range(MALFORMED):
                socket.send_multipart(malformed(source, good, contract_id))
                if number % 20 == 0:
                    assert np.array_equal(policy.act(sample, seed=1, deadline=5.0).actions, expected)
                while socket.poll(0):
                    answered += final_reply(socket)
            while answered < MALFORMED and socket.poll(2000):
                answered += final_reply(socket)
        assert answered == MALFORMED
        assert process.poll() is None


def test_a_huge_frame_ends_only_its_senders_connection(bundle: Path) -> None:
    with serving(bundle) as (address, process), RemotePolicy.connect(address) as policy:
        before = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(address)
            socket.send(bytes(200 << 20))
            policy.act(observation(policy.contract))
            assert not socket.poll(300)
        after = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        assert (after - before) * 4096 < 50 << 20
        policy.act(observation(policy.contract))
