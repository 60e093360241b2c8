"""A real client against a real server in its own process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.client.channel import Channel, read_reply
from rql_deploy.runtime.client.session import Session
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.wire import headers, protocol
from tests.helpers.commands import assert_refused, cli, run_cli, wait_for
from tests.helpers.servers import observation, serving, serving_images
from tests.helpers.wire import raw_call, raw_message, read_header, read_prefix


def test_decisions_over_the_socket_have_the_same_bytes_as_in_process(bundle: Path, endpoint: str) -> None:
    local = OnnxPolicy(Bundle.open(bundle))
    with RemotePolicy.connect(endpoint) as remote:
        assert remote.contract == local.contract
        for seed in range(5):
            for candidates in (1, 8):
                asked = {"candidates": candidates, "seed": seed, "value": True}
                a, b = (policy.act(observation(local.contract, seed), **asked) for policy in (local, remote))  # type: ignore[arg-type]
                assert a.actions.tobytes() == b.actions.tobytes()
                assert (a.value, a.spread, a.steps_used, a.seed) == (b.value, b.spread, b.steps_used, b.seed)
                assert b.timing["round_trip"] > b.timing["inference"] > 0


def test_without_a_seed_decisions_differ(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        sample = observation(policy.contract)
        assert not np.array_equal(policy.act(sample).actions, policy.act(sample).actions)


def test_observations_are_named_so_that_order_does_not_matter(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        sample = observation(policy.contract)
        extra = {"camera": np.zeros(3), **dict(reversed(sample.items()))}
        assert np.array_equal(policy.act(sample, seed=1).actions, policy.act(extra, seed=1).actions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: {k: v for k, v in o.items() if k != "observation"}, "lacks field 'observation'"),
        (lambda o: {**o, "observation": np.zeros(3)}, "has shape [3], the contract says [4]"),
        (lambda o: {**o, "observation": np.full(4, np.nan)}, "holds NaN"),
    ],
)
def test_a_wrong_observation_is_refused_by_name(change: object, words: str, endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        with pytest.raises(ContractError) as error:
            policy.act(change(observation(policy.contract)))  # type: ignore[operator]
        assert words in str(error.value)
        policy.act(observation(policy.contract))


def test_images_reach_the_policy_as_they_are(bundle: Path) -> None:
    """The same four numbers, as one field of the test bundle and as bytes and numbers of another contract."""
    with serving_images(bundle) as address:
        seen = {"camera": np.array([[255], [7]], np.uint8), "position": [0.5, -0.25]}
        with RemotePolicy.connect(address) as policy:
            decision = policy.act(seen, seed=3)
            with pytest.raises(ContractError, match="field 'camera' has float64 values"):
                policy.act({**seen, "camera": [[1.0], [0.03]]})
        state = {"observation": np.array([255, 7, 0.5, -0.25], np.float32)}
        expected = OnnxPolicy(Bundle.open(bundle)).act(state, seed=3).actions
        assert decision.actions.tobytes() == expected.tobytes()


def test_a_plant_that_differs_from_the_contract_is_refused_at_connect(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        plant = policy.contract.plant
    RemotePolicy.connect(endpoint, plant=plant).close()
    slower = msgspec.structs.replace(plant, control_rate=10.0)
    with pytest.raises(ContractError, match="control rate is 10 Hz instead of 20 Hz"):
        RemotePolicy.connect(endpoint, plant=slower)
    absolute = msgspec.structs.replace(
        plant, actions=(msgspec.structs.replace(plant.actions[0], mode="absolute"), *plant.actions[1:])
    )
    with pytest.raises(ContractError, match="mode 'absolute' instead of 'delta'"):
        RemotePolicy.connect(endpoint, plant=absolute)
    renamed = msgspec.structs.replace(plant, fields=(msgspec.structs.replace(plant.fields[0], name="state"),))
    with pytest.raises(ContractError, match="observation fields observation are missing"):
        RemotePolicy.connect(endpoint, plant=renamed)


def test_malformed_messages_get_an_error_code_and_the_server_goes_on(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        header = {"contract": policy.contract.contract_id}
        state = np.zeros(4, np.float32)
        good = raw_message("act", header, state)
        cases: list[tuple[str, str, list[bytes]]] = [
            ("bad_message", "begin with", [b"garbage" * 9]),
            ("bad_message", "a message is one frame", [good, b"more"]),
            ("version", "protocol 99, this side speaks protocol 2", [raw_message("ping", version=99)]),
            ("unknown_operation", "hello, act, refine", [raw_message(77)]),
            ("bad_header", "not a msgpack map", [raw_message("act", b"\xc1")]),
            ("bad_header", "ends within its header", [good[:30]]),
            ("bad_array", "the block has 12 bytes, 1 observation of this contract 16", [good[:-4]]),
            ("bad_array", "`act` takes no array 'x'", [raw_message("act", header, named={"x": state})]),
            ("bad_request", "'candidates'", [raw_message("act", {**header, "candidates": 10**9}, state)]),
            ("bad_request", "lacks entry 'contract'", [raw_message("act", {}, state)]),
            ("contract_changed", "say hello again", [raw_message("act", {"contract": "another"}, state)]),
            ("bad_observation", "'observation' holds NaN", [raw_message("act", header, state * np.nan)]),
        ]
        for code, words, frames in cases:
            reply = raw_call(endpoint, *frames)
            said = read_header(reply)
            assert said["code"] == code
            assert words in said["error"]
            readable = not frames[0].startswith(b"garbage")
            assert read_prefix(reply) == (2, headers.REFUSAL, int(readable), int(readable))
        policy.act(observation(policy.contract))


def test_a_client_of_protocol_1_is_told_so_in_its_own_words(endpoint: str) -> None:
    asked = {"v": 1, "id": 4, "epoch": 9, "op": "hello", "arrays": []}
    reply = msgspec.msgpack.decode(raw_call(endpoint, msgspec.msgpack.encode(asked)))
    assert (reply["v"], reply["id"], reply["epoch"], reply["ok"]) == (1, 4, 9, False)
    assert reply["code"] == "version"
    assert "the message is of protocol 1, this side speaks protocol 2" in reply["error"]
    assert msgspec.msgpack.decode(raw_call(endpoint, b"\x80garbage"))["code"] == "version"


def test_a_stopped_server_makes_the_call_raise_at_its_deadline_and_late_replies_are_never_returned(
    bundle: Path,
) -> None:
    with serving(bundle) as (address, process), RemotePolicy.connect(address) as policy:
        first = observation(policy.contract, 1)
        expected = policy.act(observation(policy.contract, 2), seed=2).actions
        process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(DeadlineMissed):
            policy.act(first, seed=1, deadline=0.2)
        waited = time.monotonic() - start
        process.send_signal(signal.SIGCONT)
        # The deadline held: generous on a busy machine, but far from hanging.
        assert 0.15 < waited < 2.0
        assert np.array_equal(
            policy.act(observation(policy.contract, 2), seed=2, deadline=5.0).actions, expected
        )


def test_a_late_reply_is_counted_and_dropped() -> None:
    """A stand-in server that answers the first request only after the second."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger, router.rcvtimeo = 0, 10_000
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def counts(number: int) -> dict[str, object]:
        return {"requests": number, "errors": 0, "ready": True}

    def answer() -> None:
        first, second = router.recv_multipart(), router.recv_multipart()
        for client, body in (first, second):
            _, kind, number, epoch = read_prefix(body)
            reply = raw_message(kind | headers.REPLY_BIT, counts(number), id=number, epoch=epoch)
            router.send_multipart([client, reply])

    thread = threading.Thread(target=answer)
    thread.start()
    channel = Channel(f"tcp://127.0.0.1:{port}")
    try:
        # What is asked without a connection is not sent at all.
        wait_for(lambda: channel.connected)
        with pytest.raises(DeadlineMissed):
            channel.call(headers.Ping(), {}, 0.05)
        reply, _ = channel.call(headers.Ping(), {}, 5.0)
        assert reply.requests == 2
        assert channel.stale_replies == 1
    finally:
        channel.close()
        thread.join()
        router.close()
        context.term()


def test_a_killed_server_makes_the_call_raise(bundle: Path) -> None:
    with serving(bundle) as (address, process), RemotePolicy.connect(address) as policy:
        process.kill()
        process.wait()
        with pytest.raises(DeadlineMissed):
            policy.act(observation(policy.contract), deadline=0.2)


def test_two_clients_get_their_own_answers(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as a, RemotePolicy.connect(endpoint) as b:
        alone = [a.act(observation(a.contract, seed), seed=seed).actions for seed in range(20)]
        results: dict[int, np.ndarray] = {}

        def ask(policy: RemotePolicy, seeds: range) -> None:
            for seed in seeds:
                results[seed] = policy.act(observation(policy.contract, seed), seed=seed).actions

        threads = [
            threading.Thread(target=ask, args=args) for args in ((a, range(0, 20, 2)), (b, range(1, 20, 2)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(results[seed], alone[seed]) for seed in range(20))


def test_a_request_whose_budget_is_spent_in_the_queue_is_not_computed(bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    state = observation(contract)["observation"].astype(np.float32)

    def ask(number: int, **entries: object) -> bytes:
        return raw_message("act", {"contract": contract.contract_id, **entries}, state, id=number)

    with (
        serving(bundle) as (address, process),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        socket.linger, socket.rcvtimeo = 0, 30_000
        socket.connect(address)
        socket.send(raw_message("ping"))
        socket.recv()
        socket.send(ask(0))
        socket.recv()
        # Stopped while they arrive, so that all of them are taken in together: a long one first, then one
        # that cannot wait. They are few and the code is warm: of more than there is time for, what is late
        # would be dropped without a reply.
        process.send_signal(signal.SIGSTOP)
        for _ in range(4):
            socket.send(ask(1, candidates=256, value=True))
        socket.send(ask(3, budget=60.0))
        socket.send(ask(2, budget=1e-4))
        time.sleep(0.2)
        process.send_signal(signal.SIGCONT)
        replies = [(read_prefix(reply)[2], read_header(reply)) for reply in (socket.recv() for _ in range(6))]
    assert ["seed" in reply for number, reply in replies if number in (1, 3)] == [True] * 5
    assert [reply.get("code") for number, reply in replies if number == 2] == ["expired"]


def test_an_absent_server_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no policy server answers at tcp://127.0.0.1:9 .*rql-deploy serve"):
        RemotePolicy.connect("tcp://127.0.0.1:9", timeout=0.2)
    with pytest.raises(UserError, match="is not an address"):
        RemotePolicy.connect("127.0.0.1:9", timeout=0.2)


def test_a_port_in_use_is_one_sentence(bundle: Path, endpoint: str) -> None:
    assert_refused(run_cli("serve", bundle, "--bind", endpoint), "cannot listen on", "another port")


def test_the_network_is_refused_without_keys_or_insecure(bundle: Path) -> None:
    for bind in ("tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.168.1.5:5555", "tcp://[::]:5555"):
        assert_refused(cli("serve", bundle, "--bind", bind), "unencrypted", "--insecure")
    assert_refused(cli("serve", bundle, "--bind", "5555"), "tcp://HOST:PORT")
    with serving(bundle, "--bind", "tcp://0.0.0.0:*", "--insecure") as (address, _):
        RemotePolicy.connect(address.replace("0.0.0.0", "127.0.0.1")).close()


def test_the_server_stops_cleanly_on_sigterm_and_has_no_torch(bundle: Path) -> None:
    with serving(bundle) as (_, process):
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert "onnxruntime" in maps
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_the_client_imports_little() -> None:
    code = (
        "import sys; import rql_deploy.runtime.client; "
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert {"numpy", "zmq", "msgspec", "rql_deploy"} <= loaded
    assert not loaded & {
        "torch",
        "onnxruntime",
        "onnx",
        "gymnasium",
        "mujoco",
        "robosuite",
        "minari",
        "h5py",
        "click",
        "scipy",
    }


def test_a_reply_that_is_no_action_chunk_is_an_error(bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    text = np.frombuffer(contract.to_json().encode(), np.uint8)
    hello = headers.HelloReply(
        server="liar", capabilities=[], bundle="", bundles={}, contract_id=contract.contract_id, records=False
    )
    session = Session("liar", (hello, {"contract": text}), None)
    good = np.zeros((contract.h, contract.plant.action_dim), np.float32)
    reply = headers.ActReply(value=None, spread=None, steps_used=10, seed=0)
    assert session.decision(reply, {"actions": good}, 0.0).steps_used == 10
    for wrong in (good + np.nan, good[:1]):
        with pytest.raises(ServerError, match="no finite action chunk"):
            session.decision(reply, {"actions": wrong}, 0.0)
    kind, right = headers.ActReply.kind, {"value": None, "spread": None, "seed": 1}

    def read(frame: bytes) -> headers.ActReply:
        return read_reply("liar", protocol.decode(frame), headers.ActReply)[0]

    assert read(raw_message(kind, right, good)).value is None
    for frame, code in (
        (raw_message(kind, {**right, "steps_used": "many"}), "bad_reply"),
        (raw_message(kind, {**right, "seed": []}), "bad_reply"),
        (raw_message(kind, {**right, "deltas": 3}), "bad_reply"),
        (raw_message(kind, {**right, "value": "high"}), "bad_reply"),
        (raw_message(headers.PingReply.kind, right), "bad_reply"),
        (raw_message(kind, right, b"123"), "bad_array"),
    ):
        with pytest.raises(ServerError, match="not protocol 2") as error:
            read(frame)
        assert error.value.code == code
    with pytest.raises(ServerError, match="protocol 3, this side speaks protocol 2: update this side"):
        read(raw_message(kind, right, good, version=3))
