"""Headers of requests, checked: what a client asked for, or a ProtocolError that says what is wrong with it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.policy import MAX_CANDIDATES
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import EpisodePart, Job
from rql_deploy.runtime.wire.checks import all_finite
from rql_deploy.runtime.wire.protocol import ProtocolError

Header = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]

_COMMON = frozenset(("v", "id", "epoch", "op", "contract", "bundle", "budget", "seed"))
"""Entries of most `act` requests."""
MAX_DELTAS = 64
"""Most refinement steps that a request may spell out."""
MAX_ROWS = MAX_CANDIDATES
"""Most rows of one `refine` or `value` request."""
MAX_TICKS = 4096
"""Most ticks of one `episode` request."""


def read_job(header: Header, arrays: Arrays, model: Model, reply_context: Any, received: float) -> Job:
    """The job that an `act` request describes. Raises ProtocolError or ContractError."""
    budget = number(header, "budget", 0.0, 3600.0)
    seed = whole(header, "seed", 0, 2**64 - 1)
    extras = {} if _COMMON.issuperset(header) else _extras(header, model)
    return Job(
        reply_context=reply_context,
        fields=model.rows(arrays),
        seed=random.getrandbits(63) if seed is None else seed,
        received=received,
        due=None if budget is None else received + budget,
        **extras,
    )


def _extras(header: Header, model: Model) -> dict[str, Any]:
    candidates = whole(header, "candidates", 1, MAX_CANDIDATES) or 1
    found: dict[str, Any] = {"candidates": candidates, "value": flag(header, "value"), "stream": flag(header, "stream")}
    if header.get("prune") is not None:
        found["prune"] = _prune(header["prune"], candidates, model.contract.F)
    if header.get("deltas") is not None:
        found["deltas"] = _deltas(header["deltas"])
        found["candidate_offset"] = whole(header, "first", 0, MAX_CANDIDATES - 1) or 0
    if header.get("prefix") is not None:
        raise ProtocolError("bad_request", "prefix is reserved for a later version: leave it out")
    return found


def read_refinement(
    header: Header, arrays: Arrays, model: Model
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """features `[N, D]`, x `[N, hA]`, f `[N, 1]`, delta `[N, 1]` of a `refine` request: N rows for one observation."""
    x = _rows(arrays, "x", (model.chunk_dim,))
    f = column(header, "f", len(x), 0.0, 1.0)
    delta = column(header, "delta", len(x), 0.0, 1.0)
    if (f + delta > 1.0 + 1e-6).any():
        raise ProtocolError("bad_request", "f + delta must not exceed 1")
    return np.repeat(model.encode(model.rows(arrays)), len(x), axis=0), x, f, delta


def read_valuation(header: Header, arrays: Arrays, model: Model) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """features `[N, D]`, x `[N, hA]`, f `[N, 1]` of a `value` request: complete chunks `actions`, or partial ones `x` at `f`."""
    features = model.encode(model.rows(arrays))
    if "actions" in arrays:
        actions = _rows(arrays, "actions", (model.contract.h, model.contract.plant.action_dim))
        x, f = model.scaled(actions), np.ones((len(actions), 1), np.float32)
    else:
        x = _rows(arrays, "x", (model.chunk_dim,))
        f = column(header, "f", len(x), 0.0, 1.0)
    return np.repeat(features, len(x), axis=0), x, f


def read_episode(header: Header, arrays: Arrays, model: Model) -> EpisodePart:
    """What a control loop did and saw in some ticks, of an `episode` request. Raises ProtocolError or ContractError."""
    actions = _rows(arrays, "actions", (model.contract.plant.action_dim,), range(MAX_TICKS + 1))
    rows, end = len(actions), flag(header, "end")
    if not rows and not end:
        raise ProtocolError("bad_request", "a part of an episode needs ticks, or must be its end")
    # The observation after the last action comes with the episode's end, where the loop has it.
    counts = range(rows, rows + 1 + end)
    fields = {spec.name: _rows(arrays, spec.name, spec.shape, counts, spec.dtype) for spec in model.contract.plant.fields}
    if len({len(value) for value in fields.values()}) > 1:
        raise ProtocolError("bad_request", "all fields of an episode must have the same number of rows")
    rewards = _rows(arrays, "rewards", (), range(rows, rows + 1)) if "rewards" in arrays else None
    success = _rows(arrays, "success", (), range(rows, rows + 1)) != 0 if "success" in arrays else None
    episode, tick = (whole(header, key, 0, 2**53) for key in ("episode", "tick"))
    if episode is None or tick is None:
        raise ProtocolError("bad_request", "an episode's part must say which episode and from which tick on")
    epoch = header.get("epoch")
    return EpisodePart(epoch if type(epoch) is int else 0, episode, tick, end, fields, actions, rewards, success)


def number(header: Header, key: str, low: float, high: float) -> float | None:
    """A finite number within bounds, or None when absent."""
    value = header.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ProtocolError("bad_request", f"{key} must be a number from {low:g} to {high:g}")
    return float(value)


def whole(header: Header, key: str, low: int, high: int) -> int | None:
    """A whole number within bounds, or None when absent."""
    value = header.get(key)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ProtocolError("bad_request", f"{key} must be a whole number from {low} to {high}")
    return value


def flag(header: Header, key: str) -> bool:
    """True or false; false when absent."""
    value = header.get(key, False)
    if value not in (None, True, False):
        raise ProtocolError("bad_request", f"{key} must be true or false")
    return bool(value)


def column(header: Header, key: str, rows: int, low: float, high: float) -> NDArray[np.float32]:
    """`[rows, 1]` from one number for all rows or a list of one each."""
    value = header.get(key)
    entries = value if isinstance(value, list) else [value] * rows
    if len(entries) != rows or not all(isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high for v in entries):
        raise ProtocolError("bad_request", f"{key} must be a number from {low:g} to {high:g}, or one for each of the {rows} rows")
    return np.array(entries, np.float32)[:, None]


def _rows(
    arrays: Arrays, name: str, shape: tuple[int, ...], counts: range = range(1, MAX_ROWS + 1), dtype: str = "float32"
) -> NDArray[Any]:
    value = arrays.get(name)
    if value is None or value.ndim != len(shape) + 1 or value.shape[1:] != shape or len(value) not in counts:
        wanted = f"[{', '.join(map(str, ('N', *shape)))}] with N from {counts[0]} to {counts[-1]}"
        raise ProtocolError("bad_request", f"array '{name}' must have shape {wanted}")
    rows: NDArray[Any] = np.asarray(value, dtype)
    if not all_finite(rows):
        raise ProtocolError("bad_request", f"array '{name}' holds NaN or infinity")
    return rows


def _prune(value: Any, candidates: int, flow_steps: int) -> tuple[tuple[int, int], ...]:
    found = [(0, candidates)]
    for pair in value if isinstance(value, list) else [None]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)):
            raise ProtocolError("bad_request", "prune must be a list of [refinement step, candidates to keep]")
        k, keep = pair
        if not (found[-1][0] < k < flow_steps and 1 <= keep <= found[-1][1]):
            raise ProtocolError("bad_request", f"prune must name rising steps below {flow_steps} and falling numbers of candidates")
        found.append((k, keep))
    return tuple(found[1:])


def _deltas(value: Any) -> tuple[float, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_DELTAS
        or not all(isinstance(d, float) and 0.0 < d <= 1.0 for d in value)
        or not math.isclose(sum(value), 1.0, abs_tol=1e-5)
    ):
        raise ProtocolError("bad_request", f"deltas must be 1 to {MAX_DELTAS} positive numbers that sum to 1")
    return tuple(value)
