"""The blocking and the asyncio client, on one server and on several, can do the same."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.policy import ActOptions, ResolvedOptions
from rql_deploy.runtime.client import RemotePolicy, connect
from rql_deploy.runtime.client.aio import AsyncRemotePolicy
from rql_deploy.runtime.client.base import resolve
from rql_deploy.runtime.client.episode_upload import EpisodeReporter
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.wire.keys import new_client
from tests.helpers.clients import CLIENTS
from tests.helpers.servers import observation, serving

Connect = Callable[..., Any]
both_clients = pytest.mark.parametrize("open_client", CLIENTS.values(), ids=CLIENTS)


@pytest.fixture(params=["one server", "two servers"])
def addresses(request: pytest.FixtureRequest, endpoint: str, tmp_path: Path) -> str | list[str]:
    """A server, or that server and one that is not there."""
    return endpoint if request.param == "one server" else [f"ipc://{tmp_path}/absent", endpoint]


@both_clients
def test_every_option_and_call_works_everywhere(
    open_client: Connect, addresses: str | list[str], bundle: Path
) -> None:
    local = OnnxPolicy(Bundle.open(bundle))
    sample = observation(local.contract, 3)
    with open_client(addresses, plant=local.contract.plant) as policy:
        assert policy.contract == local.contract
        assert not policy.outdated
        states = sorted(policy.servers.values())
        assert states == (["ready"] if isinstance(addresses, str) else ["away", "ready"])
        for options in ({}, {"value": True}, {"candidates": 4}, {"candidates": 8, "prune": [(2, 4), (5, 1)]}):
            expected = local.act(sample, seed=5, **options)  # type: ignore[arg-type]
            decision = policy.act(sample, seed=5, deadline=5.0, **options)
            assert decision.actions.tobytes() == expected.actions.tobytes()
            assert (decision.value, decision.candidates_scored) == (
                expected.value,
                expected.candidates_scored,
            )
            previews = list(policy.stream(sample, seed=5, deadline=5.0, **options))
            assert [preview.steps_used for preview in previews] == list(range(1, local.contract.F + 1))
            assert {preview.seed for preview in previews} == {5}
            assert previews[-1].actions.tobytes() == expected.actions.tobytes()
        # Where nobody names a seed, previews and the decision name the one that was drawn.
        drawn = list(policy.stream(sample, deadline=5.0))
        (seed,) = {preview.seed for preview in drawn}
        assert drawn[-1].actions.tobytes() == local.act(sample, seed=seed).actions.tobytes()
        with pytest.raises(ContractError, match=r"pass an integer from 0 to 2\^53 - 1"):
            policy.act(sample, seed=2**53)
        # A stream that is left half-way does not disturb the next call.
        stream = policy.stream(sample, seed=4, deadline=5.0)
        next(stream)
        assert (
            policy.act(sample, seed=5, deadline=5.0).actions.tobytes()
            == local.act(sample, seed=5).actions.tobytes()
        )
        stream.close()
        policy.reset()
        assert policy.stats()["requests"]["act"] >= 8
        with pytest.raises(ContractError, match="lacks field"):
            policy.act({})


@both_clients
def test_an_option_that_does_not_exist_is_named(open_client: Connect, addresses: str | list[str]) -> None:
    with open_client(addresses) as policy:
        for call in (policy.act, lambda *a, **o: list(policy.stream(*a, **o))):
            with pytest.raises(TypeError, match=r"no option 'candidate': did you mean 'candidates'\?"):
                call({}, candidate=4)
            with pytest.raises(UserError, match="there is no continuation 'guided'"):
                call({}, continuation="guided")


def test_the_options_and_their_defaults_name_the_same_fields() -> None:
    defaults = {field.name: field.type for field in dataclasses.fields(ResolvedOptions)}
    assert defaults == {name: kind.__forward_arg__ for name, kind in ActOptions.__annotations__.items()}
    assert resolve({}) == ResolvedOptions()


@both_clients
def test_keys_are_asked_for_by_one_server_and_by_several(
    open_client: Connect, bundle: Path, tmp_path: Path
) -> None:
    secret = new_client(tmp_path / "keys", "arm")
    with serving(bundle, "--keys", str(tmp_path / "keys")) as (address, _):
        absent = f"ipc://{tmp_path}/absent"
        for where in (address, [address, absent]):
            with open_client(where, keys=secret) as policy:
                assert np.isfinite(policy.act(observation(policy.contract), deadline=5.0).actions).all()
            with pytest.raises(UserError, match=r"no policy server answers at .*the server asks for keys"):
                open_client(where, timeout=1.0)


@both_clients
def test_a_process_with_many_policies_shares_one_context(open_client: Connect, endpoint: str) -> None:
    with zmq.Context() as context:
        first = open_client(endpoint, context=context)
        # Those of earlier tests begin and end meanwhile, so that their number says nothing.
        threads = set(os.listdir("/proc/self/task"))
        policies = [first] + [open_client(endpoint, context=context) for _ in range(9)]
        begun = set(os.listdir("/proc/self/task")) - threads
        sample = observation(first.contract)
        expected = first.act(sample, seed=1, deadline=5.0).actions.tobytes()
        first.close()
        # The context is the caller's: closing one policy leaves it, and the others, as they are.
        for policy in policies[1:]:
            assert policy.act(sample, seed=1, deadline=5.0).actions.tobytes() == expected
            policy.close()
        names = []
        for thread in begun:
            with contextlib.suppress(OSError):
                names.append(Path(f"/proc/self/task/{thread}/comm").read_text())
        assert not [name for name in names if name.startswith("ZMQbg")]
        with pytest.raises(UserError, match="is not an address"):
            open_client("nowhere", context=context)
        with EpisodeReporter.connect(endpoint, context=context) as reporter:
            assert not reporter.recording
        assert not context.closed


def test_policies_of_several_threads_share_one_context(endpoint: str) -> None:
    with zmq.Context() as context:
        found: list[bytes] = []

        def decide() -> None:
            with connect(endpoint, context=context) as policy:
                found.append(policy.act(observation(policy.contract), seed=1, deadline=5.0).actions.tobytes())

        threads = [threading.Thread(target=decide) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_deadline_holds_while_another_call_negotiates(bundle: Path) -> None:
    """The contract must be checked again, and the server hangs: each call waits as long as it was told to."""
    with serving(bundle) as (address, process):

        async def drive() -> None:
            async with await AsyncRemotePolicy.connect(address) as policy:
                sample = observation(policy.contract)
                expected = (await policy.act(sample, seed=1)).actions.tobytes()
                policy._core.outdated = True  # type: ignore[misc]
                process.send_signal(signal.SIGSTOP)
                patient = asyncio.create_task(policy.act(sample, seed=1, deadline=20.0))
                await asyncio.sleep(0.05)
                start = time.monotonic()
                with pytest.raises(DeadlineMissed):
                    await policy.act(sample, deadline=0.2)
                assert 0.15 < time.monotonic() - start < 2.0
                process.send_signal(signal.SIGCONT)
                assert (await patient).actions.tobytes() == expected

        asyncio.run(drive())


def test_closing_an_asyncio_client_ends_its_calls(bundle: Path) -> None:
    with serving(bundle) as (address, process):

        async def drive() -> None:
            policy = await AsyncRemotePolicy.connect(address)
            process.send_signal(signal.SIGSTOP)
            calls = [
                asyncio.create_task(policy.act(observation(policy.contract), deadline=60.0)) for _ in range(3)
            ]
            await asyncio.sleep(0.05)
            await policy.close()
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5.0)
            assert all(isinstance(result, DeadlineMissed) for result in results)
            with pytest.raises(DeadlineMissed, match="closed"):
                await policy.act(observation(policy.contract))

        asyncio.run(drive())


def test_the_blocking_client_works_inside_a_running_event_loop(endpoint: str) -> None:
    """As in a notebook: its coroutines are its own, and the loop does not see them."""

    async def cell() -> None:
        with RemotePolicy.connect(endpoint) as policy:
            sample = observation(policy.contract)
            stream = policy.stream(sample, seed=1, deadline=5.0)
            next(stream)
            del stream
            gc.collect()
            assert len(list(policy.stream(sample, seed=1, deadline=5.0))) == policy.contract.F

    asyncio.run(cell())
