"""Clients and servers that stop, restart, vanish and answer late."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, DeadlineMissed
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.aio import AsyncRemotePolicy
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.wire import headers
from rql_deploy.runtime.wire.arrays import Layout
from tests.helpers.servers import observation, serving, variant
from tests.helpers.wire import raw_message, read_prefix


def test_a_stream_gives_a_better_action_after_every_step_and_ends_with_acts(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        sample = observation(policy.contract, 3)
        decisions = list(policy.stream(sample, seed=3, value=True, deadline=5.0))
        assert [d.steps_used for d in decisions] == list(range(1, policy.contract.F + 1))
        assert all(d.value is not None for d in decisions)
        final = policy.act(sample, seed=3, value=True)
        assert decisions[-1].actions.tobytes() == final.actions.tobytes()
        assert (decisions[-1].value, decisions[-1].deltas) == (final.value, final.deltas)
        # A stream that is left half-way does not disturb the next call.
        next(iter(policy.stream(sample, seed=4)))
        assert policy.act(sample, seed=3).actions.tobytes() == final.actions.tobytes()


def test_client_held_refinement_ends_where_the_server_would(endpoint: str) -> None:
    from rql_deploy.seeding import flow_noise

    with RemotePolicy.connect(endpoint) as policy:
        contract = policy.contract
        id, sample = contract.contract_id, observation(contract, 2)
        fields = Layout(contract.plant.fields).pack(sample)
        expected = policy.act(sample, seed=2, value=True)
        channel = Channel(endpoint)
        x, f = flow_noise(2, 1, contract.h * contract.plant.action_dim), 0.0
        for delta in expected.deltas:
            request = headers.Refine(contract=id, f=f, delta=delta)
            _, out = channel.call(request, fields._replace(named={"x": x}), 5.0)
            x, f = out["next_x"], float(np.float32(f) + np.float32(delta))
        assert out["preview"][0].tobytes() == expected.actions.tobytes()
        chunks = fields._replace(named={"actions": out["preview"]})
        _, judged = channel.call(headers.Value(contract=id), chunks, 5.0)
        assert float(judged["value"][0]) == expected.value
        channel.close()


def test_the_same_client_goes_on_after_a_server_restart(bundle: Path, tmp_path: Path) -> None:
    socket = f"ipc://{tmp_path}/policy"
    with serving_at(bundle, socket) as first, RemotePolicy.connect(socket) as policy:
        sample = observation(policy.contract, 1)
        before = policy.act(sample, seed=1).actions
        first.kill()
        first.wait()
        with pytest.raises(DeadlineMissed):
            policy.act(sample, seed=1, deadline=0.2)
        with serving_at(bundle, socket):
            start = time.monotonic()
            while True:
                try:
                    after = policy.act(sample, seed=1, deadline=0.1).actions
                    break
                except DeadlineMissed:
                    assert time.monotonic() - start < 20.0
        assert np.array_equal(before, after)


def test_a_server_that_stood_still_for_seconds_goes_on_with_the_same_client(bundle: Path) -> None:
    """As after a suspended machine: hundreds of dead requests, a lost connection, then a right reply."""
    with serving(bundle) as (address, process), RemotePolicy.connect(address) as policy:
        sample = observation(policy.contract, 1)
        expected = policy.act(sample, seed=1).actions
        process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            with pytest.raises(DeadlineMissed):
                policy.act(sample, deadline=0.01)
        process.send_signal(signal.SIGCONT)
        assert np.array_equal(policy.act(sample, seed=1, deadline=10.0).actions, expected)
        assert process.poll() is None


def test_a_restarted_server_with_another_plants_policy_is_refused(bundle: Path, tmp_path: Path) -> None:

    contract = Bundle.open(bundle).contract
    slower = msgspec.structs.replace(
        contract, plant=msgspec.structs.replace(contract.plant, control_rate=10.0)
    )
    other = variant(bundle, tmp_path / "other", slower, scale=1.0)
    socket = f"ipc://{tmp_path}/policy"
    with serving_at(bundle, socket) as first, RemotePolicy.connect(socket) as policy:
        policy.act(observation(contract))
        first.kill()
        first.wait()
        with (
            serving_at(other, socket),
            pytest.raises(
                ContractError, match=r"serves another policy than at first: .*control rate is 10 Hz"
            ),
        ):
            policy.act(observation(contract), deadline=5.0)


def test_late_doubled_and_reordered_replies_are_never_returned() -> None:
    """A server that answers late, twice and out of order: every call gets its own reply or none."""
    rng = np.random.default_rng(0)
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    stop = threading.Event()

    def misbehave() -> None:
        held: list[list[bytes]] = []
        while not stop.is_set():
            if not router.poll(20):
                continue
            client, asked = router.recv_multipart()
            _, kind, number, epoch = read_prefix(asked)
            counts = {"requests": number, "errors": 0, "ready": True}
            held.append([client, raw_message(kind | headers.REPLY_BIT, counts, id=number, epoch=epoch)])
            if rng.random() < 0.7:
                for index in rng.permutation(len(held)):
                    for _ in range(int(rng.integers(1, 3))):
                        router.send_multipart(held[index])
                held = held[-2:]

    thread = threading.Thread(target=misbehave)
    thread.start()
    channel = Channel(f"tcp://127.0.0.1:{port}")
    answered = number = 0
    try:
        while answered <= 100 or channel.stale_replies <= 100:
            number += 1
            assert number < 10_000, (answered, channel.stale_replies)
            try:
                reply, _ = channel.call(headers.Ping(), {}, 0.02)
            except DeadlineMissed:
                continue
            assert reply.requests == number
            answered += 1
    finally:
        stop.set()
        thread.join()
        channel.close()
        context.destroy(linger=0)


def test_asyncio_clients_have_many_requests_under_way(endpoint: str, bundle: Path) -> None:
    contract = Bundle.open(bundle).contract

    async def drive() -> None:
        async with await AsyncRemotePolicy.connect(endpoint, plant=contract.plant) as policy:
            calls = [policy.act(observation(contract, seed), seed=seed, deadline=5.0) for seed in range(16)]
            together = await asyncio.gather(*calls)
            with RemotePolicy.connect(endpoint) as sync:
                for seed, decision in enumerate(together):
                    assert (
                        sync.act(observation(contract, seed), seed=seed).actions.tobytes()
                        == decision.actions.tobytes()
                    )
            await policy.reset()
            with pytest.raises(ContractError, match="lacks field"):
                await policy.act({})

    asyncio.run(drive())


def test_an_asyncio_call_raises_at_its_deadline(bundle: Path) -> None:
    with serving(bundle) as (address, process):

        async def drive() -> None:
            async with await AsyncRemotePolicy.connect(address) as policy:
                process.send_signal(signal.SIGSTOP)
                start = time.monotonic()
                with pytest.raises(DeadlineMissed):
                    await policy.act(observation(policy.contract), deadline=0.2)
                assert time.monotonic() - start < 2.0
                process.send_signal(signal.SIGCONT)
                await policy.act(observation(policy.contract), seed=1, deadline=5.0)
                deadline = time.monotonic() + 20
                while policy.stale_replies == 0 and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)
                assert policy.stale_replies == 1

        asyncio.run(drive())


def test_a_duplicated_request_id_is_the_clients_own_affair(endpoint: str, bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    state = observation(contract)["observation"].astype(np.float32)
    chunk_bytes = 4 * contract.h * contract.plant.action_dim
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvtimeo = 0, 10_000
        socket.connect(endpoint)
        frame = raw_message("act", {"contract": contract.contract_id, "seed": 1}, state, id=5)
        for _ in range(3):
            socket.send(frame)
        replies = [socket.recv() for _ in range(3)]
    assert {read_prefix(reply)[2] for reply in replies} == {5}
    assert len({reply[-chunk_bytes:] for reply in replies}) == 1


@contextlib.contextmanager
def serving_at(bundle: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """A server at a fixed address."""
    with serving(bundle, "--bind", address) as (_, process):
        yield process
