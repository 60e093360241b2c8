"""One connection used by threads, signal handlers and forks, and closed under them."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import DeadlineMissed, PolicyClosed, UserError
from rql_deploy.runtime.client import RemotePolicy, connect
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.client.episode_upload import EpisodeReporter
from rql_deploy.runtime.client.shared_socket import SharedSocket
from rql_deploy.runtime.control.clock import SystemClock
from rql_deploy.runtime.control.inference import InferenceRequest, ThreadRunner
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.wire.headers import Ping
from tests.helpers.commands import ROOT
from tests.helpers.servers import observation


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[str]:
    """An address where requests are taken and none is answered."""
    endpoint = f"ipc://{tmp_path}/mute"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(endpoint)
        yield endpoint


@contextlib.contextmanager
def interrupted(handler: Callable[..., Any], every: float = 0.003) -> Iterator[None]:
    """A signal every few milliseconds, as of a loop that is driven by a timer."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails a test that takes longer; one that hangs ends after a minute."""
    watchdog = threading.Timer(60.0, os._exit, (3,))
    watchdog.daemon = True
    watchdog.start()
    start = time.monotonic()
    try:
        yield
        assert time.monotonic() - start < seconds
    finally:
        watchdog.cancel()


def in_fork(call: Callable[[], object]) -> str:
    """What a call says in a forked process, which has two seconds for it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(call())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    expiry = time.monotonic() + 20.0
    with open(read, "rb") as pipe:
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > expiry:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        return pipe.read().decode()


@pytest.mark.parametrize("busy_poll", [False, True])
@pytest.mark.parametrize("servers", [1, 2])
def test_threads_that_share_a_policy_get_their_own_decisions(
    endpoint: str, bundle: Path, tmp_path: Path, busy_poll: bool, servers: int
) -> None:
    local = OnnxPolicy(Bundle.open(bundle))
    count = 10 if busy_poll else 20
    faults: list[object] = []
    with connect([endpoint, f"ipc://{tmp_path}/absent"][:servers], busy_poll=busy_poll) as policy:

        def act(first: int) -> None:
            try:
                for seed in range(first, first + count):
                    sample = observation(policy.contract, seed)
                    if seed % 5:
                        decisions = [policy.act(sample, seed=seed, deadline=20.0)]
                    else:
                        decisions = list(policy.stream(sample, seed=seed, deadline=20.0))
                        assert len(decisions) == policy.contract.F
                    expected = local.act(sample, seed=seed)
                    assert decisions[-1].actions.tobytes() == expected.actions.tobytes()
                    assert decisions[-1].seed == seed
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=act, args=(1000 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert policy.stale_replies == 0


def test_a_thread_is_not_held_up_by_one_that_waits(mute: str) -> None:
    """The one with the short deadline comes second, and leads after the first one has left."""
    with contextlib.closing(Channel(mute)) as channel:
        waits: list[float] = []

        def ask(timeout: float) -> None:
            start = time.monotonic()
            with pytest.raises(DeadlineMissed, match=f"within {timeout * 1e3:g} ms"):
                channel.call(Ping(), {}, timeout)
            waits.append(time.monotonic() - start - timeout)

        threads = [threading.Thread(target=ask, args=(timeout,)) for timeout in (0.4, 0.05, 0.6)]
        with within(5.0):
            for thread in threads:
                thread.start()
                time.sleep(0.02)
            for thread in threads:
                thread.join()
        assert len(waits) == 3
        assert max(waits) < 0.4


@pytest.mark.parametrize("busy_poll", [False, True])
def test_a_deadline_holds_whatever_signals_arrive(mute: str, tmp_path: Path, busy_poll: bool) -> None:
    absent = f"ipc://{tmp_path}/absent"
    with interrupted(lambda *_: None), within(10.0):
        for where, reason in ((mute, "no reply"), (absent, "no connection")):
            with (
                contextlib.closing(Channel(where, busy_poll=busy_poll)) as channel,
                pytest.raises(DeadlineMissed, match=reason),
            ):
                channel.call(Ping(), {}, 0.1)
        for addresses in (mute, [mute, absent]):
            with pytest.raises(UserError, match="no policy server answers"):
                connect(addresses, timeout=np.float32(0.2), busy_poll=busy_poll)


def test_a_signal_handler_may_call_and_close_the_policy_it_interrupts(endpoint: str, mute: str) -> None:
    with connect(endpoint) as policy, within(20.0):
        sample = observation(policy.contract)
        expected = policy.act(sample, seed=1, deadline=5.0).actions.tobytes()
        inside: list[bytes] = []

        def decide(*_: object) -> None:
            if len(inside) < 20:
                inside.append(policy.act(sample, seed=1, deadline=5.0).actions.tobytes())

        with interrupted(decide, 0.005):
            while len(inside) < 20:
                assert policy.act(sample, seed=1, deadline=5.0).actions.tobytes() == expected
        assert set(inside) == {expected}
    channel = Channel(mute)
    with interrupted(lambda *_: channel.close(), 0.05), within(5.0), pytest.raises(PolicyClosed):
        channel.call(Ping(), {}, 30.0)


@pytest.mark.parametrize("busy_poll", [False, True])
def test_closing_from_another_thread_ends_the_calls_under_way(mute: str, busy_poll: bool) -> None:
    channel = Channel(mute, busy_poll=busy_poll)
    ended: list[Exception] = []

    def ask() -> None:
        try:
            channel.call(Ping(), {}, 60.0)
        except Exception as error:
            ended.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    with within(5.0):
        closers = [threading.Thread(target=channel.close) for _ in range(3)]
        for thread in closers + threads:
            thread.start() if thread in closers else thread.join()
        for thread in closers:
            thread.join()
    assert [type(error) for error in ended] == [PolicyClosed] * 3
    with pytest.raises(PolicyClosed):
        channel.call(Ping(), {}, 60.0)
    assert not channel.connected
    channel.close()


@pytest.mark.parametrize("servers", [1, 2])
def test_a_policy_is_closed_while_another_thread_acts(endpoint: str, tmp_path: Path, servers: int) -> None:
    for _ in range(4 // servers):
        policy = connect([endpoint, f"ipc://{tmp_path}/absent"][:servers])
        sample = observation(policy.contract)
        timer = threading.Timer(0.05, policy.close)
        timer.start()
        with within(10.0), pytest.raises(PolicyClosed):
            while True:
                policy.act(sample, deadline=5.0)
        timer.join()
        for call in (policy.reset, policy.stats, functools.partial(policy.act, sample)):
            with pytest.raises(PolicyClosed):
                call()
        with pytest.raises(PolicyClosed):
            next(policy.stream(sample))
        policy.close()


def test_a_context_that_is_terminated_ends_the_calls_under_way(mute: str) -> None:
    context = zmq.Context()
    channel = Channel(mute, context=context)
    timer = threading.Timer(0.05, context.term)
    timer.start()
    with within(5.0), pytest.raises(PolicyClosed):
        channel.call(Ping(), {}, 60.0)
    timer.join()


def test_a_fork_is_told_at_once_to_connect_anew(endpoint: str, tmp_path: Path) -> None:
    refused = r"was made in process \d+ and cannot be used in its fork \d+: make it after the fork"
    several = [endpoint, f"ipc://{tmp_path}/absent"]
    with zmq.Context() as context, connect(endpoint, context=context) as policy, connect(several) as spread:
        sample = observation(policy.contract)
        stream = policy.stream(sample, seed=1, deadline=20.0)
        next(stream)
        reporter = EpisodeReporter.connect(endpoint)
        runner = ThreadRunner(policy, SystemClock(), deadline=1.0)
        for call in (
            lambda: policy.act(sample, deadline=0.2),
            lambda: next(policy.stream(sample)),
            lambda: next(stream),
            policy.reset,
            lambda: spread.act(sample, deadline=0.2),
            lambda: connect(endpoint, context=context),
            lambda: runner.submit(InferenceRequest(1, sample, 1)),
        ):
            said = in_fork(call)
            assert said.startswith("UserError: "), said
            assert re.search(refused, said)
        # Leaving a `with` in the child leaves the parent's connection as it is.
        assert in_fork(lambda: (policy.close(), spread.close(), reporter.close(), runner.close())) != ""
        assert in_fork(lambda: connect(endpoint).act(sample, seed=1).seed) == "1"
        runner.close()
        assert len(list(stream)) == policy.contract.F - 1
        assert policy.act(sample, seed=1, deadline=5.0).seed == 1
        assert spread.act(sample, seed=1, deadline=5.0).seed == 1


def test_streams_that_nobody_finishes_leave_nothing_behind(endpoint: str) -> None:
    with connect(endpoint) as policy:
        sample = observation(policy.contract)
        expected = policy.act(sample, seed=1, deadline=5.0).actions.tobytes()
        streams = [policy.stream(sample, seed=9, deadline=20.0) for _ in range(4)]
        for stream in streams:
            next(stream)
        closer = threading.Thread(target=streams[0].close)  # type: ignore[attr-defined]
        closer.start()
        closer.join()
        del streams[1]
        gc.collect()
        for _ in range(20):
            assert policy.act(sample, seed=1, deadline=5.0).actions.tobytes() == expected
        assert len(list(streams[1])) == policy.contract.F - 1
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
        assert not policy._core._transport._channel._shared._calls  # type: ignore[attr-defined]


def test_ctrl_c_leaves_the_policy_usable(endpoint: str) -> None:
    with connect(endpoint) as policy, within(30.0):
        sample = observation(policy.contract)
        expected = policy.act(sample, seed=1, deadline=5.0).actions.tobytes()
        for i in range(15):
            with (
                pytest.raises(KeyboardInterrupt),
                interrupted(signal.default_int_handler, 0.001 + 0.0007 * i),
            ):
                while True:
                    policy.act(sample, deadline=5.0)
                    list(policy.stream(sample, deadline=5.0))
            assert policy.act(sample, seed=1, deadline=5.0).actions.tobytes() == expected
        other = threading.Thread(target=lambda: policy.act(sample, deadline=5.0))
        other.start()
        other.join()
        assert policy.act(sample, seed=1, deadline=5.0).actions.tobytes() == expected


def test_a_policy_that_nobody_closed_is_collected_and_keeps_no_process(endpoint: str) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    policy: RemotePolicy | None = connect(endpoint)
    cycle: list[object] = [policy]
    cycle.append(cycle)
    del cycle
    policy = None
    gc.collect()
    assert open_files() <= before
    code = (
        "import sys, threading; from rql_deploy.runtime.client import connect\n"
        "policy = connect(sys.argv[1]); cycle = [policy]; cycle.append(cycle)\n"
        "threading.Thread(target=lambda: [policy.reset() for _ in range(10**9)], daemon=True).start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, endpoint], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_connection_that_stands_by_the_time_a_send_has_failed_is_used() -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as there, context.socket(zmq.DEALER) as here:
        there.bind("inproc://peer")
        here.connect("inproc://peer")
        shared: SharedSocket[bytes] = SharedSocket(here, lambda: (0, here.recv(zmq.NOBLOCK)))
        refusals = iter([zmq.Again(), zmq.Again()])

        def send() -> None:
            if refusal := next(refusals, None):
                raise refusal

        # The descriptor has nothing to say: a client that waits for it waits in vain.
        start = time.monotonic()
        assert shared.send(1, send, start + 4.0)
        assert time.monotonic() - start < 2.0
        shared.close()
