"""Options and observations in every form that people pass, to every policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.client.episode_upload import EpisodeReporter
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from tests.helpers.clients import CLIENTS
from tests.helpers.servers import observation


@pytest.fixture(params=[*CLIENTS, *(f"{name}, several servers" for name in CLIENTS), "in this process"])
def policy(request: pytest.FixtureRequest, endpoint: str, bundle: Path, tmp_path: Path) -> Iterator[Any]:
    if request.param == "in this process":
        yield OnnxPolicy(Bundle.open(bundle))
        return
    name, _, several = request.param.partition(", ")
    open_client: Callable[..., Any] = CLIENTS[name]
    with open_client([endpoint, f"ipc://{tmp_path}/absent"] if several else endpoint) as client:
        yield client


def test_options_observations_and_arrays(policy: Any, bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    sample = observation(contract)
    expected = policy.act(sample, seed=3, candidates=4, value=True, prune=[(2, 2)])

    # numpy's numbers are numbers, truth values are not.
    options = {
        "seed": np.uint64(3),
        "candidates": np.int64(4),
        "value": np.True_,
        "prune": np.array([[2, 2]]),
        "deadline": np.float32(5.0),
    }
    again = policy.act(sample, **options)
    assert again.actions.tobytes() == expected.actions.tobytes()
    assert (type(again.seed), again.seed, again.value) == (int, 3, expected.value)
    assert policy.act(sample, deadline=np.int32(5), seed=np.array(3)).seed == 3
    for name, error in (("seed", ContractError), ("candidates", TypeError), ("deadline", TypeError)):
        for wrong in (True, np.False_, "1", [1]):
            with pytest.raises(error, match=f"{name} is"):
                policy.act(sample, **{name: wrong})
    with pytest.raises(UserError, match="candidates is 257: pass 1 to 256"):
        policy.act(sample, candidates=np.int16(257))

    # Every array is the caller's.
    for decision in (again, *policy.stream(sample, seed=3, candidates=4, value=True)):
        decision.actions[:] = 1.0
    assert policy.act(sample, **options).actions.tobytes() == expected.actions.tobytes()

    # An observation that does not fit is refused by the field's name.
    name = contract.plant.fields[0].name
    right = sample[name]
    wrong_fields: dict[str, Any] = {
        rf"lacks field '{name}' of shape \[4\] \(there is '{name}s'\)": {f"{name}s": right},
        "is of type ndarray: pass a dict": right,
        "has shape": {name: right[None]},
        f"field '{name}' is not an array of numbers": {name: [1, [2, 3], 4, 5]},
        "not an array of numbers .could not convert": {name: "four"},
        "masked values: fill them": {name: np.ma.array(right, mask=[True, False, False, False])},
        "has complex128 values": {name: right.astype(complex)},
        "holds NaN": {name: right * np.nan},
    }
    for reason, wrong_observation in wrong_fields.items():
        with pytest.raises(ContractError, match=reason):
            policy.act(wrong_observation, seed=1)
    for form in (right.tolist(), right.astype(">f8"), right.astype(object), np.float64(2) * right / 2):
        assert (
            policy.act({name: form, "other": "x"}, **options).actions.tobytes() == expected.actions.tobytes()
        )


def test_a_timeout_is_a_number(endpoint: str) -> None:
    for open_client in (*CLIENTS.values(), EpisodeReporter.connect):
        open_client(endpoint, timeout=np.float32(5)).close()
        for wrong in (True, "5"):
            with pytest.raises(TypeError, match="timeout is"):
                open_client(endpoint, timeout=wrong)


@pytest.mark.parametrize("connect", list(CLIENTS.values()), ids=list(CLIENTS))
def test_what_is_no_address_is_named(connect: Callable[..., Any]) -> None:
    for wrong in (None, 5555, b"tcp://127.0.0.1:5555", Path("/tmp/socket"), ["tcp://127.0.0.1:5555", None]):
        with pytest.raises(TypeError, match=r"endpoint is .*: pass an address like"):
            connect(wrong)
    with pytest.raises(UserError, match="no address"):
        connect(iter([]))
