"""Several observations in one request: the same decisions as one by one, for every client and policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.batches import MAX_BATCH
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.wire import headers
from rql_deploy.runtime.wire.arrays import Layout
from tests.helpers.clients import CLIENTS
from tests.helpers.servers import serving_images

Connect = Callable[..., Any]
ONE = np.zeros((1, 2), np.float32)
both_clients = pytest.mark.parametrize("open_client", CLIENTS.values(), ids=CLIENTS)


def batch(rows: int, size: int = 4) -> dict[str, np.ndarray]:
    """Observations of the test bundle, as a vectorised environment gives them."""
    return {"observation": np.random.default_rng(rows).normal(size=(rows, size))}


def told(decisions: list[Any]) -> list[tuple[Any, ...]]:
    return [
        (d.actions.tobytes(), d.value, d.spread, d.seed, d.candidates_scored, d.steps_used, d.deltas)
        for d in decisions
    ]


@both_clients
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("options", [{}, {"candidates": 4, "value": True, "prune": [(2, 2)]}], ids=str)
def test_a_batch_is_decided_as_its_observations_one_by_one(
    open_client: Connect, endpoint: str, bundle: Path, rows: int, options: dict[str, Any]
) -> None:
    local = OnnxPolicy(Bundle.open(bundle))
    observations, seeds = batch(rows), list(range(100, 100 + rows))
    expected = [
        local.act({"observation": row}, seed=seed, **options)
        for row, seed in zip(observations["observation"], seeds, strict=True)
    ]
    with open_client(endpoint) as policy:
        asked = policy.stats()["requests"].get("act_many", 0)
        decisions = policy.act_many(observations, seeds=seeds, deadline=20.0, **options)
        assert told(decisions) == told(expected)
        assert told(local.act_many(observations, seeds=seeds, **options)) == told(expected)
        assert policy.stats()["requests"]["act_many"] == asked + 1
        assert {decision.server for decision in decisions} == {endpoint}
        assert decisions[0].actions.flags.writeable
        assert {"queue", "inference", "server", "round_trip"} <= set(decisions[0].timing)


@both_clients
@pytest.mark.parametrize(
    "options", [{}, {"candidates": 4, "value": True}, {"continuation": "inversion"}], ids=str
)
def test_each_observation_of_a_batch_continues_what_plays_there(
    open_client: Connect, endpoint: str, bundle: Path, options: dict[str, Any]
) -> None:
    local = OnnxPolicy(Bundle.open(bundle))
    observations, seeds = batch(4), [7, 8, 9, 10]
    before = local.act_many(observations, seeds=[1, 2, 3, 4])
    prefix = [before[0].actions[1:], None, before[2].actions[:1], before[3].actions[1:]]
    committed = [1, None, None, 0]
    expected = [
        local.act({"observation": row}, seed=seed, prefix=known, committed=count, **options)
        for row, seed, known, count in zip(observations["observation"], seeds, prefix, committed, strict=True)
    ]
    assert [len(one) for one in (before[0].actions, prefix[0])] == [3, 2]
    plain = told(local.act_many(observations, seeds=seeds, **{**options, "continuation": None}))
    with open_client(endpoint) as policy:
        asked = {"seeds": seeds, "prefix": prefix, "committed": committed, **options}
        decisions = policy.act_many(observations, deadline=20.0, **asked)
        assert told(decisions) == told(expected) == told(local.act_many(observations, **asked))
        whole = {"seeds": seeds[:2], "prefix": np.zeros((2, 2, 2), np.float32), "committed": 1}
        pair = {"observation": observations["observation"][:2]}
        assert told(policy.act_many(pair, deadline=20.0, **whole)) == told(local.act_many(pair, **whole))
    assert decisions[0].actions[:1].tobytes() == prefix[0][:1].tobytes()
    assert [mine == other for mine, other in zip(told(decisions), plain, strict=True)] == [
        False,
        True,
        False,
        True,
    ]


def test_a_request_whose_prefix_does_not_divide_is_refused(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        channel, contract = Channel(endpoint), policy.contract.contract_id
        packed = Layout(policy.contract.plant.fields).pack(batch(2), 2)._replace(named={"prefix": ONE})
        for lengths, committed in (([1], None), ([2, 0], None), (None, None), ([1, 0], [1])):
            request = headers.ActMany(contract=contract, rows=2, lengths=lengths, committed=committed)
            with pytest.raises(
                ServerError, match="lengths and committed are to divide the 1 actions of prefix"
            ):
                channel.call(request, packed, 20.0)
        channel.close()


def test_seeds_are_drawn_for_each_observation_and_named(endpoint: str) -> None:
    same = {"observation": np.zeros((3, 4))}
    with RemotePolicy.connect(endpoint) as policy:
        decisions = policy.act_many(same, deadline=20.0)
        assert len({decision.seed for decision in decisions}) == 3
        assert len({decision.actions.tobytes() for decision in decisions}) == 3
        again = policy.act_many(same, seeds=[decision.seed for decision in decisions], deadline=20.0)
        assert told(again) == told(decisions)


def test_wrong_batches_are_refused_in_one_sentence_before_anything_is_sent(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        before = policy.stats()["requests"]
        for observations, options, error, words in (
            (batch(3), {"seeds": [1, 2]}, UserError, "2 seeds came with 3 observations"),
            (batch(3), {"seeds": 7}, TypeError, "pass one seed for each observation"),
            (batch(3), {"seed": 7}, TypeError, "did you mean 'seeds'"),
            (batch(3), {"prefix": [None, ONE]}, UserError, "2 arrays of prefix came with 3 observations"),
            (batch(3), {"prefix": 7}, TypeError, "prefix is 7: pass one array for each observation"),
            (batch(2), {"prefix": [ONE, ONE], "committed": [1]}, UserError, "1 numbers of committed came"),
            (batch(2), {"prefix": [ONE, ONE], "committed": 2}, UserError, "committed is 2: pass 0 to 1"),
            (batch(2), {"prefix": [None, np.zeros(5)]}, ContractError, r"prefix has shape \[5\]"),
            (batch(2), {"prefix": [None, np.nan * ONE]}, ContractError, "prefix holds NaN"),
            (batch(200), {"candidates": 16}, UserError, "more than 1024 chunks: ask in parts"),
            (batch(MAX_BATCH + 1), {}, ContractError, "1 to 256 observations"),
            ({"observation": np.zeros(())}, {}, ContractError, r"pass \[rows, \*shape\]"),
            ({"observation": np.zeros((2, 5))}, {}, ContractError, r"shape \[5\], the contract says \[4\]"),
            ({"observations": np.zeros((2, 4))}, {}, ContractError, "there is 'observations'"),
            ([{"observation": np.zeros(4)}], {}, ContractError, "pass a dict of fields by name"),
        ):
            with pytest.raises(error, match=words):
                policy.act_many(observations, **options)
        assert {**policy.stats()["requests"], "stats": 0} == {**before, "stats": 0}
        spoilt = batch(3)
        spoilt["observation"][2, 1] = np.nan
        with pytest.raises(ContractError, match="holds NaN or infinity in observation 2, the first being 0"):
            policy.act_many(spoilt, deadline=20.0)


def test_a_batch_without_time_is_refused_whole_and_a_short_one_says_what_it_got(endpoint: str) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        policy.act_many(batch(2), deadline=20.0)
        channel = Channel(endpoint)
        packed = Layout(policy.contract.plant.fields).pack(batch(40), 40)
        contract = policy.contract.contract_id
        with pytest.raises(DeadlineMissed, match=r"budget of 0\.0 ms was spent before its turn"):
            channel.call(headers.ActMany(contract=contract, budget=1e-6), packed, 20.0)
        # Enough for some of the steps: chunks of more rows than one step takes come in waves.
        seen = set()
        for budget in (*(2e-3, 4e-3, 8e-3, 16e-3, 32e-3) * 3, 1.0):
            try:
                reply, arrays = channel.call(
                    headers.ActMany(contract=contract, budget=budget, candidates=4), packed, 20.0
                )
            except DeadlineMissed:
                continue
            assert len(reply.steps_used) == len(reply.seed) == len(arrays["actions"].reshape(40, -1)) == 40
            if "deltas" in arrays:
                assert np.allclose(arrays["deltas"].sum(axis=1), 1.0)
                assert [int((row > 0).sum()) for row in arrays["deltas"]] == reply.steps_used
            seen.add(max(reply.compared or [1]))
        assert seen
        channel.close()
        start = time.monotonic()
        with pytest.raises(DeadlineMissed):
            policy.act_many(batch(256), deadline=1e-4)
        assert time.monotonic() - start < 1.0


def test_a_batch_of_images_is_as_large_as_the_server_takes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 5
    rng = np.random.default_rng(0)
    observations = {
        "camera": rng.integers(0, 256, (rows, 2, 1), np.uint8),
        "position": rng.normal(size=(rows, 2)),
    }
    with serving_images(bundle) as address, RemotePolicy.connect(address) as policy:
        decisions = policy.act_many(observations, seeds=range(rows), deadline=20.0)
        one_by_one = [
            policy.act({name: values[row] for name, values in observations.items()}, seed=row, deadline=20.0)
            for row in range(rows)
        ]
        assert [d.actions.tobytes() for d in decisions] == [d.actions.tobytes() for d in one_by_one]
        session = policy._core._session  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "_max_bytes", 2**16 + 30)
        with pytest.raises(UserError, match=r"5 observations of 10 bytes .* ask for at most 3 at once"):
            policy.act_many(observations)


def test_requests_of_one_connection_may_overlap(endpoint: str) -> None:
    from rql_deploy.runtime.client.aio import AsyncRemotePolicy

    async def ask() -> None:
        async with await AsyncRemotePolicy.connect(endpoint) as policy:
            expected = [await policy.act_many(batch(9), seeds=range(9), deadline=20.0) for _ in range(1)]
            found = await asyncio.gather(
                *(policy.act_many(batch(9), seeds=range(9), deadline=20.0) for _ in range(4)),
                policy.act({"observation": batch(9)["observation"][4]}, seed=4, deadline=20.0),
            )
            assert [told(one) for one in found[:4]] == [told(expected[0])] * 4
            assert told([found[4]]) == told(expected[0][4:5])

    asyncio.run(ask())


def test_a_server_that_knows_no_batches_says_what_it_knows(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RemotePolicy.connect(endpoint) as policy:
        monkeypatch.setattr(headers.ActMany, "kind", 77)
        with pytest.raises(ServerError, match="knows no operation 77, but hello, act"):
            policy.act_many(batch(2))


@both_clients
@pytest.mark.parametrize(
    "rows", [[[1, 2, 3, 4], [1, 2]], [object()], None, "1234"], ids=["ragged", "objects", "none", "text"]
)
def test_a_batch_that_is_no_array_is_named(open_client: Connect, endpoint: str, rows: Any) -> None:
    with open_client(endpoint) as policy, pytest.raises(ContractError, match="field 'observation'"):
        policy.act_many({"observation": rows})
