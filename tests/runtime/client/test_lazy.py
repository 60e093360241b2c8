"""A policy that connects where it is used: in forks, in spawned workers, in gymnasium's vectorised envs."""

from __future__ import annotations

import os
import pickle
from functools import partial

import gymnasium
import numpy as np
import pytest

from rql_deploy.errors import PolicyClosed, UserError
from rql_deploy.runtime.client import RemotePolicy
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
