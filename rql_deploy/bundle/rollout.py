"""Roll the flow out through a bundle's graphs, for the certificate, the rankings and the latencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.flow import flow_schedule
from rql_deploy.prefix import trained_prefix

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[np.float32]
Sessions = Mapping[str, "onnxruntime.InferenceSession"]


def refine_inputs(
    contract: Contract,
    features: Array,
    x: Array,
    f: Array,
    delta: Array,
    given: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[Any]]:
    """What the refinement graph takes; `given` `[B]`, where it was trained so, is 0 unless said otherwise."""
    inputs: dict[str, NDArray[Any]] = {"features": features, "x": x, "f": f, "delta": delta}
    if contract.prefix_conditioned:
        inputs["given"] = np.zeros(len(x), np.int64) if given is None else given
    return inputs


def run_graphs(sessions: Sessions, contract: Contract, observations: Array, noise: Array) -> dict[str, Array]:
    """Every output of every graph for observations `[B, O]` and noise `[B, hA]`, by name."""
    fields = contract.split(observations)
    features = sessions["encode"].run(None, fields)[0]
    outputs = {"encode": features, "policy": run_policy(sessions, contract, observations, noise)}
    x, column = noise, np.ones((len(noise), 1), np.float32)
    for k, (f, delta) in enumerate(flow_schedule(contract.F)):
        outputs[f"value/{k}/value"], outputs[f"value/{k}/spread"] = run_value(sessions, features, x, f)
        inputs = refine_inputs(contract, features, x, column * np.float32(f), column * np.float32(delta))
        x, preview = sessions["refine"].run(None, inputs)
        outputs[f"refine/{k}/x"], outputs[f"refine/{k}/preview"] = x, preview
    last = contract.F
    outputs[f"value/{last}/value"], outputs[f"value/{last}/spread"] = run_value(
        sessions, features, np.clip(x, -1.0, 1.0), 1.0
    )
    if contract.prefix_conditioned:
        x, given = given_case(contract, noise)
        for k, (f, delta) in enumerate(flow_schedule(contract.F)):
            inputs = refine_inputs(
                contract, features, x, column * np.float32(f), column * np.float32(delta), given
            )
            x, outputs[f"given/{k}/preview"] = sessions["refine"].run(None, inputs)
            outputs[f"given/{k}/x"] = x
    return outputs


def given_case(contract: Contract, noise: Array) -> tuple[Array, NDArray[np.int64]]:
    """x `[B, hA]` with its first actions given, and how many those are, `[B]`; from each row's own noise."""
    given = (noise[:, : trained_prefix(contract.h)] > 0).sum(1)
    place = np.arange(noise.shape[1]) // contract.plant.action_dim
    return np.where(place < given[:, None], np.clip(noise, -1.0, 1.0), noise), given.astype(np.int64)


def run_policy(sessions: Sessions, contract: Contract, observations: Array, noise: Array) -> Array:
    """Action chunks `[B, h, A]` of the unrolled graph, in the plant's units."""
    chunks: Array = sessions["policy"].run(None, {"noise": noise, **contract.split(observations)})[0]
    return chunks


def run_value(sessions: Sessions, features: Array, x: Array, f: float) -> tuple[Array, Array]:
    """V and spread `[B]` of x `[B, hA]` at flow time f."""
    value, spread = sessions["value"].run(
        None, {"features": features, "x": x, "f": np.full((len(x), 1), f, np.float32)}
    )
    return value, spread


def rows_are_independent(
    sessions: Sessions, contract: Contract, observations: Array, noise: Array, extremes: Array
) -> bool:
    """Whether rows give the same bytes alone, together, and in a batch with extreme rows `[N, O]`."""
    together = run_graphs(sessions, contract, observations, noise)
    far = 1e3 * np.resize(noise, (len(extremes), noise.shape[1]))
    mixed = run_graphs(
        sessions, contract, np.concatenate((extremes, observations)), np.concatenate((far, noise))
    )
    return _same(together, mixed, slice(len(mixed["policy"]) - len(observations), None)) and all(
        _same(run_graphs(sessions, contract, observations[row], noise[row]), together, row)
        for row in _some_rows(len(observations))
    )


def _some_rows(count: int) -> Iterator[slice]:
    for row in range(0, count, max(1, count // 4)):
        yield slice(row, row + 1)


def _same(part: Mapping[str, Array], batch: Mapping[str, Array], rows: slice) -> bool:
    return all(part[name].tobytes() == batch[name][rows].tobytes() for name in batch)
