"""The asyncio client: deadlines, cancellation, and the loop and process that it belongs to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from pathlib import Path

import pytest
import zmq

from rql_deploy.errors import PolicyClosed, UserError
from rql_deploy.runtime.client.aio import AsyncRemotePolicy, AsyncTransport
from rql_deploy.runtime.client.transport import call
from rql_deploy.runtime.wire.headers import Ping, PingReply
from rql_deploy.runtime.wire.protocol import decode, encode, send
from tests.helpers.commands import wait_for
from tests.helpers.servers import observation


def test_a_cancelled_call_leaves_the_policy_usable(endpoint: str) -> None:
    async def drive() -> None:
        async with await AsyncRemotePolicy.connect(endpoint) as policy:
            sample = observation(policy.contract)
            expected = (await policy.act(sample, seed=1, deadline=5.0)).actions.tobytes()
            for i in range(30):
                task = asyncio.create_task(policy.act(sample, candidates=64, deadline=5.0))
                await asyncio.sleep(0.0002 * i)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(policy.act(sample, deadline=5.0), 0.0002 * i)
            streams = [policy.stream(sample, deadline=20.0) for _ in range(3)]
            for stream in streams:
                await anext(stream)
            await streams[0].aclose()  # type: ignore[attr-defined]
            del stream, streams
            gc.collect()
            assert (await policy.act(sample, seed=1, deadline=5.0)).actions.tobytes() == expected
            # The event loop closes dropped streams after some turns.
            pending, expiry = policy._core._transport._pending, time.monotonic() + 20.0  # type: ignore[attr-defined]
            while pending and time.monotonic() < expiry:
                await asyncio.sleep(0.01)
            assert not pending

    asyncio.run(drive())


@pytest.mark.parametrize("servers", [1, 2])
def test_a_second_event_loop_is_refused_by_name(endpoint: str, tmp_path: Path, servers: int) -> None:
    addresses = [endpoint, f"ipc://{tmp_path}/absent"][:servers]
    before = set(os.listdir("/proc/self/task"))
    policy = asyncio.run(AsyncRemotePolicy.connect(addresses))
    its_threads = set(os.listdir("/proc/self/task")) - before
    sample = observation(policy.contract)

    async def use() -> None:
        start = time.monotonic()
        for refused in (policy.act(sample), anext(policy.stream(sample)), policy.reset(), policy.stats()):
            with pytest.raises(UserError, match="another event loop: connect in the loop that uses it"):
                await refused
        assert time.monotonic() - start < 1.0
        await policy.close()

    asyncio.run(use())
    assert its_threads
    wait_for(lambda: not its_threads & set(os.listdir("/proc/self/task")))


@pytest.mark.parametrize("name", ["mute", "absent"])
def test_another_thread_closes_a_policy_under_its_calls(tmp_path: Path, name: str) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{tmp_path}/mute")
        ended: list[BaseException] = []
        ready = threading.Event()
        transports: list[AsyncTransport] = []

        async def wait() -> None:
            transports.append(AsyncTransport(f"ipc://{tmp_path}/{name}", keys=None, context=None, ipv6=False))
            ready.set()
            try:
                await call(transports[0], Ping(), time.monotonic() + 60.0, 60.0)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=lambda: asyncio.run(wait()))
        thread.start()
        assert ready.wait(10.0)
        time.sleep(0.05)
        asyncio.run(transports[0].close())
        thread.join(10.0)
        assert not thread.is_alive()
        assert [type(error) for error in ended] == [PolicyClosed]


def test_a_loop_that_ends_while_another_thread_closes_its_policy_is_no_error(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect() -> AsyncTransport:
        return AsyncTransport(endpoint, keys=None, context=None, ipv6=False)

    transport = asyncio.run(connect())
    # As it is when the loop ends between the question and the call.
    monkeypatch.setattr(transport._loop, "is_running", lambda: True)
    asyncio.run(transport.close())
    assert transport._closed


def test_a_fork_is_told_at_once_to_connect_anew(endpoint: str) -> None:
    async def drive() -> None:
        async with await AsyncRemotePolicy.connect(endpoint) as policy:
            sample = observation(policy.contract)
            pid = os.fork()
            if pid == 0:
                try:
                    await policy.close()
                    await policy.act(sample)
                except UserError as error:
                    os._exit(7 if "cannot be used in its fork" in str(error) else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert (await policy.act(sample, seed=1, deadline=5.0)).seed == 1

    asyncio.run(drive())


@pytest.mark.parametrize("look", ["in the loop", "between two runs of the loop"])
def test_looking_at_the_connection_loses_no_reply(endpoint: str, look: str) -> None:
    loop = asyncio.new_event_loop()

    async def connect() -> AsyncTransport:
        transport = AsyncTransport(endpoint, keys=None, context=None, ipv6=False)
        await call(transport, Ping(), time.monotonic() + 5.0, 5.0)
        return transport

    async def send(transport: AsyncTransport) -> int:
        number = await transport.send(Ping(), {}, time.monotonic() + 5.0, 5.0)
        await asyncio.sleep(0)
        time.sleep(0.1)  # the loop is busy while the reply comes
        if look == "in the loop":
            assert transport.connected
        return number

    transport = loop.run_until_complete(connect())
    for _ in range(5):
        number = loop.run_until_complete(send(transport))
        assert transport.connected
        expiry = time.monotonic() + 10.0
        reply, _ = loop.run_until_complete(transport.receive(number, PingReply, expiry, 10.0))
        assert reply.ready
        transport.forget(number)
    loop.run_until_complete(transport.close())
    loop.close()


def test_another_thread_may_not_look_at_the_connection_while_its_loop_runs(endpoint: str) -> None:
    async def drive() -> None:
        async with await AsyncRemotePolicy.connect(endpoint) as policy:
            assert policy.servers == {endpoint: "ready"}
            with pytest.raises(UserError, match="another event loop"):
                await asyncio.to_thread(lambda: policy.servers)

    asyncio.run(drive())


@pytest.mark.parametrize("cut", [False, True])
def test_asking_whether_there_is_a_connection_loses_no_reply(tmp_path: Path, cut: bool) -> None:
    """Nor does it keep one from being noticed: ZeroMQ tells what has happened once."""

    async def drive() -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger, router.rcvtimeo = 0, 10_000
            router.bind(f"ipc://{tmp_path}/server")
            transport = AsyncTransport(f"ipc://{tmp_path}/server", keys=None, context=None, ipv6=False)
            expiry = time.monotonic() + 5.0
            numbers = [await transport.send(Ping(), {}, expiry, 5.0) for _ in range(3)]
            for _ in numbers:
                client, frame = router.recv_multipart()
                head = decode(frame)
                send(router, encode(reply, id=head.id, epoch=head.epoch), client=client)
            # The event loop does not turn meanwhile.
            time.sleep(0.1)
            assert transport.connected
            if cut:
                router.close()
                wait_for(lambda: not transport.connected)
            for number in numbers:
                assert (await transport.receive(number, PingReply, expiry, 5.0))[0] == reply
            await transport.close()

    reply = PingReply(requests=1, errors=0, ready=True)
    asyncio.run(drive())
