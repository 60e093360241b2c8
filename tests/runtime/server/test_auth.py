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

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.server import auth
from rql_deploy.runtime.server.auth import ServerKeys
from rql_deploy.runtime.wire.keys import client_files, new_client, read_public_key, revoke
from tests.helpers.commands import assert_refused, cli
from tests.helpers.servers import note, observation, serving
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
        with pytest.raises(UserError, match=r"no policy server answers .*asks for keys"):
            RemotePolicy.connect(address, timeout=1.5)
        # The right server key with a client key that the server does not know.
        server_line = next(line for line in arm.read_text().splitlines() if "server-key" in line)
        old_line = next(line for line in stranger.read_text().splitlines() if "server-key" in line)
        stranger.write_text(stranger.read_text().replace(old_line, server_line))
        with pytest.raises(UserError, match="does not accept this key: it was revoked, never allowed"):
            RemotePolicy.connect(address, keys=stranger, timeout=1.5)
        with RemotePolicy.connect(address, keys=arm) as policy:
            policy.act(observation(policy.contract))
            revoke(keys, "arm")
            deadline = time.monotonic() + 30
            with pytest.raises(DeadlineMissed):
                while time.monotonic() < deadline:
                    policy.act(observation(policy.contract), deadline=0.5)


def test_keys_that_others_can_read_are_refused(bundle: Path, tmp_path: Path) -> None:
    new_client(tmp_path, "arm")
    (tmp_path / "server.key_secret").chmod(0o644)
    assert_refused(cli("serve", bundle, "--keys", tmp_path), "can be read by others", "chmod 600")
    assert_refused(cli("serve", bundle, "--keys", tmp_path / "none"), "there is no key file", "none")


def test_a_client_beyond_its_rate_is_rejected_and_others_are_served(bundle: Path) -> None:
    with serving(bundle, "--max-rate", "50") as (address, _):
        contract = Bundle.open(bundle).contract
        sample = observation(contract)
        block = [sample[field.name].astype(np.float32) for field in contract.plant.fields]
        with zmq.Context() as context, context.socket(zmq.DEALER) as greedy:
            greedy.linger, greedy.rcvtimeo = 0, 10_000
            greedy.connect(address)
            start, computed, codes = time.monotonic(), 0, set[str]()
            while not codes and computed < 2000:
                for number in range(60):
                    greedy.send(raw_message("act", {"contract": contract.contract_id}, *block, id=number))
                replies = [read_header(greedy.recv()) for _ in range(60)]
                computed += sum("code" not in reply for reply in replies)
                codes |= {reply["code"] for reply in replies if "code" in reply}
            seconds = time.monotonic() - start
        assert codes == {"busy"}
        # A burst of 25 and, beside it, 12 for one who has used little; then 50 a second, and a quarter.
        assert computed <= 25 + 12 + 62.5 * seconds + 2
        with RemotePolicy.connect(address) as modest:
            modest.act(sample, deadline=5.0)


def test_a_running_server_reads_its_key_folder_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str] = []
    monkeypatch.setattr(auth._log, "error", lambda _, extra: errors.append(extra["data"]["reason"]))
    for name in ("arm1", "arm2", "arm3"):
        new_client(tmp_path, name)
    keys = ServerKeys(tmp_path)
    files = client_files(tmp_path)
    old = {name: read_public_key(path) for name, path in files.items()}
    assert all(keys.allows(key) for key in old.values() if key)

    def said() -> list[str]:
        keys.refresh()
        keys.refresh()  # a second reading says nothing new
        found = errors.copy()
        errors.clear()
        return found

    # Strangers among the files: text, a directory, a pipe that nobody writes to.
    (tmp_path / "clients" / "notes.key").write_text("hello\n")
    (tmp_path / "clients" / "folder.key").mkdir()
    os.mkfifo(tmp_path / "clients" / "pipe.key")
    assert len(said()) == 3
    assert all(keys.allows(key) for key in old.values() if key)
    # An edit in place that keeps size and times takes effect.
    times, other = files["arm2"].stat(), "".join(reversed((old["arm2"] or b"").decode()))
    files["arm2"].write_text(files["arm2"].read_text().replace((old["arm2"] or b"").decode(), other))
    os.utime(files["arm2"], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert said() == []
    assert not keys.allows(old["arm2"] or b"")
    assert keys.allows(other.encode())
    # A file that holds no key any more allows nobody; one that cannot be read changes nothing.
    files["arm2"].write_text(files["arm2"].read_text().replace("public-key", "#"))
    assert len(said()) == 1
    assert not keys.allows(other.encode())
    files["arm3"].unlink()
    files["arm3"].symlink_to(files["arm3"])
    (sentence,) = said()
    assert "cannot be read" in sentence
    assert keys.allows(old["arm3"] or b"")
    # Without the folder all stay, and nobody new comes in; a removed file revokes.
    (tmp_path / "clients").rename(tmp_path / "elsewhere")
    assert "stay as they were" in said()[0]
    assert keys.allows(old["arm1"] or b"")
    (tmp_path / "elsewhere").rename(tmp_path / "clients")
    files["arm1"].unlink()
    said()
    assert not keys.allows(old["arm1"] or b"")
    assert keys.allows(old["arm3"] or b"")


def test_nothing_in_a_key_folder_ends_a_server(bundle: Path, tmp_path: Path) -> None:
    arm = new_client(tmp_path, "arm")
    with (
        serving(bundle, "--keys", str(tmp_path)) as (address, process),
        RemotePolicy.connect(address, keys=arm) as policy,
    ):
        (tmp_path / "clients" / "notes.key").write_text("hello\n")
        assert "notes.key is not a key file" in note(process, r'"reason": "(.*?)"')
        (tmp_path / "clients").rename(tmp_path / "elsewhere")
        assert "stay as they were" in note(process, r'"reason": "(.*?)"')
        policy.act(observation(policy.contract), deadline=5.0)
        assert process.poll() is None
        revoke_here = tmp_path / "elsewhere" / "arm.key"
        revoke_here.unlink()
        (tmp_path / "elsewhere").rename(tmp_path / "clients")
        assert note(process, r'"event": "client revoked", "client": "(.*?)"') == "arm"


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
            socket.linger, socket.rcvtimeo = 0, 10_000
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
