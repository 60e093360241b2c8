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
Inputs = Mapping[str, NDArray[Any]]
"""What encode.onnx takes, by name: fields and stacked pictures, `[B, ...]` each."""
ENCODE_ROWS = 4
"""Most observations with pictures that are encoded in one call: more take longer each."""


def observed(contract: Contract, observations: Array, images: Inputs) -> Inputs:
    """The inputs of observations `[B, O]` with their pictures, by camera."""
    return {**contract.split(observations), **images}


def pick(inputs: Inputs, rows: slice | NDArray[Any]) -> Inputs:
    """Only some rows."""
    return {name: value[rows] for name, value in inputs.items()}


def together(*several: Inputs) -> Inputs:
    """The rows of all, one after the other."""
    return {name: np.concatenate([inputs[name] for inputs in several]) for name in several[0]}


def count_rows(inputs: Inputs) -> int:
    """B"""
    return len(next(iter(inputs.values())))


def encode(session: onnxruntime.InferenceSession, inputs: Inputs) -> Array:
    """features `[B, D]`."""
    rows = count_rows(inputs)
    step = ENCODE_ROWS if any(value.dtype == np.uint8 for value in inputs.values()) else rows
    parts: list[Array] = [
        session.run(None, dict(inputs if step >= rows else pick(inputs, slice(i, i + step))))[0]
        for i in range(0, rows, step)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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


def run_graphs(sessions: Sessions, contract: Contract, inputs: Inputs, noise: Array) -> dict[str, Array]:
    """Every output of every graph for observations and noise `[B, hA]`, by name.

    Where there are r times as many noises, every observation has r in a row.
    """
    features = np.repeat(encode(sessions["encode"], inputs), len(noise) // count_rows(inputs), axis=0)
    outputs = {"encode": features, "policy": run_policy(sessions, inputs, noise, features)}
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


def run_policy(sessions: Sessions, inputs: Inputs, noise: Array, features: Array | None = None) -> Array:
    """Action chunks `[B, h, A]` of the unrolled graph, in the plant's units; noise as for `run_graphs`.

    Where observations have pictures, the graph takes features: they are made here unless given.
    """
    repeats = len(noise) // count_rows(inputs)
    if any(entry.name == "features" for entry in sessions["policy"].get_inputs()):
        if features is None:
            features = np.repeat(encode(sessions["encode"], inputs), repeats, axis=0)
        inputs = {"features": features}
    elif repeats > 1:
        inputs = {name: np.repeat(value, repeats, axis=0) for name, value in inputs.items()}
    chunks: Array = sessions["policy"].run(None, {"noise": noise, **inputs})[0]
    return chunks


def run_value(sessions: Sessions, features: Array, x: Array, f: float) -> tuple[Array, Array]:
    """V and spread `[B]` of x `[B, hA]` at flow time f."""
    value, spread = sessions["value"].run(
        None, {"features": features, "x": x, "f": np.full((len(x), 1), f, np.float32)}
    )
    return value, spread


def rows_are_independent(
    sessions: Sessions, contract: Contract, inputs: Inputs, noise: Array, extremes: Inputs
) -> bool:
    """Whether rows give the same bytes alone, together, and in a batch with extreme rows."""
    batch = run_graphs(sessions, contract, inputs, noise)
    far = 1e3 * np.resize(noise, (count_rows(extremes), noise.shape[1]))
    mixed = run_graphs(sessions, contract, together(extremes, inputs), np.concatenate((far, noise)))
    return _same(batch, mixed, slice(len(mixed["policy"]) - len(noise), None)) and all(
        _same(run_graphs(sessions, contract, pick(inputs, row), noise[row]), batch, row)
        for row in _some_rows(len(noise))
    )


def _some_rows(count: int) -> Iterator[slice]:
    for row in range(0, count, max(1, count // 4)):
        yield slice(row, row + 1)


def _same(part: Mapping[str, Array], batch: Mapping[str, Array], rows: slice) -> bool:
    return all(part[name].tobytes() == batch[name][rows].tobytes() for name in batch)
