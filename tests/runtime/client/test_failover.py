"""One policy on several servers."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy
from tests.helpers.clients import CLIENTS
from tests.helpers.commands import wait_for
from tests.helpers.forks import in_fork_while_a_thread_holds
from tests.helpers.servers import observation, serving, variant

both_clients = pytest.mark.parametrize("open_client", CLIENTS.values(), ids=CLIENTS)


def served(endpoint: str) -> int:
    with RemotePolicy.connect(endpoint) as policy:
        return int(policy.stats()["requests"].get("act", 0))


@both_clients
def test_requests_go_in_turn_and_around_a_server_that_hangs_dies_or_drains(
    open_client: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    first, second = (f"ipc://{tmp_path}/{name}" for name in ("first", "second"))
    contract = Bundle.open(bundle).contract
    sample = observation(contract, 1)
    with contextlib.ExitStack() as stack:
        _, one = stack.enter_context(serving(bundle, "--bind", first))
        _, two = stack.enter_context(serving(bundle, "--bind", second))
        policy = stack.enter_context(open_client([first, second], plant=contract.plant))
        assert policy.servers == {first: "ready", second: "ready"}
        assert not policy.outdated
        policy.reset()
        expected = {policy.act(sample, seed=1).actions.tobytes() for _ in range(6)}
        assert len(expected) == 1
        assert (served(first), served(second)) == (3, 3)
        assert [d.steps_used for d in policy.stream(sample, seed=1)] == list(range(1, contract.F + 1))

        one.send_signal(signal.SIGSTOP)
        missed = 0
        for _ in range(10):
            try:
                assert policy.act(sample, seed=1, deadline=0.3).actions.tobytes() in expected
            except DeadlineMissed:
                missed += 1
        assert missed == 1, "only the call that was on the server that hangs"
        assert policy.servers == {first: "away", second: "ready"}
        policy.reset()
        one.send_signal(signal.SIGCONT)
        wait_for(
            lambda: policy.act(sample, seed=1, deadline=2.0) is not None and policy.servers[first] == "ready"
        )

        two.kill()
        two.wait()
        missed = 0
        for _ in range(10):
            try:
                policy.act(sample, seed=1, deadline=0.3)
            except DeadlineMissed:
                missed += 1
        assert missed <= 1
        stack.enter_context(serving(bundle, "--bind", second))

        def spread() -> bool:
            for _ in range(4):
                policy.act(sample, seed=1, deadline=2.0)
            return served(second) > 0

        wait_for(spread)
        os.kill(one.pid, signal.SIGTERM)
        for _ in range(10):
            assert policy.act(sample, seed=1, deadline=2.0).actions.tobytes() in expected
        assert one.wait(timeout=15) == 0


@both_clients
def test_every_servers_contract_is_checked_and_one_server_is_enough(
    open_client: Callable[..., Any], bundle: Path, tmp_path: Path, endpoint: str
) -> None:
    contract = Bundle.open(bundle).contract
    slower = msgspec.structs.replace(
        contract, plant=msgspec.structs.replace(contract.plant, control_rate=10.0)
    )
    other = variant(bundle, tmp_path / "other", slower, scale=1.0)
    absent = f"ipc://{tmp_path}/absent"
    with pytest.raises(UserError, match="no policy server answers at any of"):
        open_client([absent, f"ipc://{tmp_path}/neither"], timeout=0.2)
    with pytest.raises(UserError, match="is not an address"):
        open_client([endpoint, "here"], timeout=0.2)
    with open_client([endpoint, absent], plant=contract.plant) as policy:
        for seed in range(3):
            policy.act(observation(contract), seed=seed)
        with pytest.raises(ContractError, match="lacks field"):
            policy.act({})
        # One that joins later and serves another plant's policy is never asked, and says why.
        with serving(other, "--bind", absent):
            with pytest.raises(ContractError, match="control rate"):
                open_client([endpoint, absent])
            wait_for(
                lambda: (
                    policy.act(observation(contract), deadline=2.0) is not None
                    and "control rate" in policy.servers[absent]
                )
            )
            assert np.isfinite(policy.act(observation(contract), deadline=2.0).actions).all()


@both_clients
def test_different_trainings_are_refused_unless_they_are_asked_for(
    open_client: Callable[..., Any], bundle: Path, successor: Path, endpoint: str, tmp_path: Path
) -> None:
    sample = observation(Bundle.open(bundle).contract)
    late = f"ipc://{tmp_path}/late"
    with serving(successor) as (other, process):
        with pytest.raises(
            ContractError, match=r"serves another training than the others .* allow_mixed=True"
        ):
            open_client([endpoint, other])
        with open_client([endpoint, other], allow_mixed=True) as policy:
            decisions = [policy.act(sample, seed=1, deadline=5.0) for _ in range(4)]
            assert {d.server for d in decisions} == {endpoint, other}
            made = {(d.server, d.contract_id, d.actions.tobytes()) for d in decisions}
            assert len(made) == 2
            assert (endpoint, Bundle.open(bundle).contract.contract_id) in {m[:2] for m in made}
            assert (other, Bundle.open(successor).contract.contract_id) in {m[:2] for m in made}
            assert {d.bundle for d in policy.stream(sample, deadline=5.0)} == {"tiny/flat-v0"}
        process.kill()
    with open_client([endpoint, late]) as policy, serving(successor, "--bind", late):
        # One that joins later gets nothing, and says why.
        wait_for(
            lambda: (
                policy.act(sample, deadline=5.0).server == endpoint
                and "another training" in policy.servers[late]
            )
        )
        assert {policy.act(sample, deadline=5.0).server for _ in range(6)} == {endpoint}


def test_an_exchange_of_the_bundle_on_one_server_after_the_other_never_mixes(
    bundle: Path, successor: Path, tmp_path: Path
) -> None:
    sample = observation(Bundle.open(bundle).contract)
    places = [tmp_path / name for name in ("first", "second")]
    with contextlib.ExitStack() as stack:
        servers = []
        for place in places:
            shutil.copytree(bundle, place)
            servers.append(stack.enter_context(serving(place)))
        policy = stack.enter_context(RemotePolicy.connect([address for address, _ in servers]))
        made: list[tuple[str, str]] = []

        def act() -> set[str]:
            decision = policy.act(sample, deadline=20.0)
            made.append((decision.contract_id, decision.server))
            return {server for _, server in made[-4:]}

        act()
        for place, (address, process) in zip(places, servers, strict=True):
            shutil.rmtree(place)
            shutil.copytree(successor, place)
            process.send_signal(signal.SIGHUP)
            with RemotePolicy.connect(address) as direct:
                wait_for(
                    lambda direct=direct: (
                        direct.act(sample, deadline=20.0).contract_id == successor_id(successor)
                    )
                )
            for _ in range(8):
                act()
            if place is places[0]:
                # Only the one that has what both began with.
                assert act() == {servers[1][0]}
        wait_for(lambda: len(act()) == 2 and made[-1][0] == successor_id(successor))
        ids = [contract_id for contract_id, _ in made]
        # One decision on the first server finds its exchange out; then the second's change is the only one.
        assert sum(before != after for before, after in itertools.pairwise(ids)) <= 3


def successor_id(successor: Path) -> str:
    return Bundle.open(successor).contract.contract_id


def test_a_fork_is_refused_whatever_the_threads_of_its_parent_do(endpoint: str) -> None:
    with RemotePolicy.connect([endpoint, "tcp://127.0.0.1:9"]) as policy:
        core: Any = policy._core
        sample = observation(policy.contract)
        for call in (lambda: policy.act(sample, deadline=0.2), policy.reset, policy.stats):
            said = in_fork_while_a_thread_holds(core._lock, call)
            assert "cannot be used in its fork" in said
        assert policy.act(sample, deadline=5.0).actions.size
