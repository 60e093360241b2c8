"""A policy that connects where it is used: in forks, in spawned workers, in gymnasium's vectorised envs."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from functools import partial
from typing import Any, NoReturn

import gymnasium
import numpy as np
import pytest

from rql_deploy.errors import PolicyClosed, UserError
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.lazy import LazyCore
from tests.helpers.clients import AwaitedPolicy
from tests.helpers.following import Following, Numbers


def first_action(policy: RemotePolicy) -> bytes:
    return policy.act({"observation": np.ones(4)}, seed=3, deadline=20.0).actions.tobytes()


@pytest.fixture(scope="module")
def expected(endpoint: str) -> bytes:
    with RemotePolicy.connect(endpoint) as policy:
        return first_action(policy)


def test_a_lazy_policy_goes_through_pickles_and_connects_once_a_process(
    endpoint: str, expected: bytes
) -> None:
    policy = RemotePolicy.connect(endpoint, lazy=True)
    assert first_action(policy) == first_action(policy) == expected
    copy = pickle.loads(pickle.dumps(policy))  # noqa: S301
    assert first_action(copy) == expected
    assert len(list(copy.stream({"observation": np.ones(4)}, deadline=20.0))) == copy.contract.F
    assert len(copy.act_many({"observation": np.ones((2, 4))}, deadline=20.0)) == 2
    copy.close()
    assert first_action(policy) == expected
    policy.close()
    with pytest.raises(PolicyClosed):
        first_action(policy)


def test_a_fork_connects_for_itself_whatever_its_parent_has_done(endpoint: str, expected: bytes) -> None:
    used, closed = (RemotePolicy.connect(endpoint, lazy=True) for _ in range(2))
    assert first_action(used) == first_action(closed) == expected
    closed.close()
    for policy in (used, closed):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(writer, first_action(policy))
                policy.close()
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == expected
        assert os.waitpid(child, 0)[1] == 0
    assert first_action(used) == expected
    used.close()


def test_what_cannot_be_handed_to_another_process_says_what_can(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        with pytest.raises(UserError, match=r"cannot be pickled for another process: .* lazy=True"):
            pickle.dumps(policy)
        with (
            AwaitedPolicy(endpoint) as awaited,
            pytest.raises(UserError, match="of asyncio cannot be pickled for another process"),
        ):
            pickle.dumps(awaited._policy)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                first_action(policy)
            except UserError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            assert "or connect with lazy=True" in pipe.read()
    nobody = RemotePolicy.connect("tcp://127.0.0.1:1", timeout=0.2, lazy=True)
    with pytest.raises(UserError, match=r"no policy server answers at tcp://127\.0\.0\.1:1"):
        first_action(nobody)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_policies_work_in_the_workers_of_a_vectorised_environment(
    endpoint: str, expected: bytes, context: str
) -> None:
    policy = RemotePolicy.connect(endpoint, lazy=True)
    # The parent makes one environment too, uses it, and closes it.
    envs = gymnasium.vector.AsyncVectorEnv([partial(Following, Numbers(), policy)] * 2, context=context)
    try:
        envs.reset(seed=1)
        _, rewards, *_ = envs.step(np.zeros((2, 3), np.float32))
        assert [float(reward).hex() for reward in rewards] == [Following.digest(expected).hex()] * 2
    finally:
        envs.close()
        policy.close()


def test_threads_that_come_while_one_connects_share_its_attempt() -> None:
    everybody, attempts, said = threading.Barrier(9), [], []

    def connect() -> NoReturn:
        attempts.append(1)
        time.sleep(0.3)
        raise UserError("no policy server answers")

    core = LazyCore(connect)

    def ask() -> None:
        everybody.wait()
        try:
            said.append(str(core.contract))
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    everybody.wait()
    for thread in threads:
        thread.join()
    assert said == ["no policy server answers"] * 8
    assert len(attempts) == 1, "and none waited for the attempts of the others"


def test_a_signal_handler_that_interrupts_connecting_is_refused(endpoint: str) -> None:
    said: list[str] = []

    def use(*_: object) -> None:
        try:
            first_action(policy)
        except UserError as error:
            said.append(str(error))

    policy = RemotePolicy.connect(endpoint, lazy=True)
    core: Any = policy._core
    connect = core._connect

    def interrupted() -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return connect()

    core._connect = interrupted
    before = signal.signal(signal.SIGUSR1, use)
    try:
        assert policy.contract.h
        assert said == [
            "the policy is being connected by the call that this one interrupts: ask for its contract before "
            "signals come"
        ]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert len(said) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)
        policy.close()


def test_a_closed_policy_does_not_connect(endpoint: str) -> None:
    policy = RemotePolicy.connect(endpoint, lazy=True)
    core: Any = policy._core
    connect = core._connect

    def closed_meanwhile() -> Any:
        made.append(connect())
        policy.close()
        return made[0]

    made: list[Any] = []
    core._connect = closed_meanwhile
    with pytest.raises(PolicyClosed):
        policy.reset()
    assert set(made[0].servers.values()) == {"away"}, "the connection was closed"
    with RemotePolicy.connect("tcp://127.0.0.1:1", lazy=True) as unused:
        pass
    with pytest.raises(PolicyClosed):
        first_action(unused)
