"""What requests ask the engine for, with the checks that need the arrays, the model or several entries.

Types and bounds of single entries are checked when the header is decoded (`runtime.wire.headers`), the fields
of observations when the block is read (`runtime.wire.arrays`). `fields` are those, `named` the other arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.batches import MAX_BATCH, MAX_BATCH_CHUNKS
from rql_deploy.errors import UserError
from rql_deploy.policy import MAX_CANDIDATES, Continuation, ResolvedOptions
from rql_deploy.prefix import Prefix, read_prefix
from rql_deploy.runtime.engine.budget import UNROLLED_ROWS
from rql_deploy.runtime.engine.model import MAX_STEP_ROWS, Model
from rql_deploy.runtime.engine.request import EpisodePart, Job, Task
from rql_deploy.runtime.engine.shares import Client
from rql_deploy.runtime.engine.slices import Slices, refine_in_slices, value_in_slices
from rql_deploy.runtime.wire import headers
from rql_deploy.runtime.wire.arrays import MAX_MESSAGE_BYTES, Arrays, Layout
from rql_deploy.runtime.wire.checks import ProtocolError, all_finite
from rql_deploy.runtime.wire.headers import MAX_TICKS
from rql_deploy.runtime.wire.notes import decode_notes
from rql_deploy.seeding import draw_seed

from .batch import Batch
from .replies import ReplyContext

HEADROOM = 1 << 20
"""Bytes that a message may have beyond its observations and `MAX_ROWS` chunks."""
BATCH_BYTES = 16 << 20
"""Bytes that the observations of a batch may have; two may come together whatever their size."""
MAX_ROWS = MAX_CANDIDATES
"""Most rows of one `refine` or `value` request."""


def observation_bytes(model: Model) -> int:
    """Size of one observation in a message."""
    return Layout.of(model.contract.plant).row_bytes


def largest_message(models: Iterable[Model]) -> int:
    """Bytes of a message that all operations fit in, episodes and batches of images in parts."""
    needed = []
    for model in models:
        size = observation_bytes(model)
        needed.append(max(2 * size, min(MAX_BATCH * size, BATCH_BYTES)) + 4 * MAX_ROWS * model.chunk_dim)
    return min(MAX_MESSAGE_BYTES, HEADROOM + max(needed))


def read_job(
    request: headers.Act,
    fields: Arrays,
    named: Arrays,
    model: Model,
    reply_context: Any,
    client: Client,
    received: float,
) -> Job:
    """The job that an `act` request asks for. Raises ProtocolError."""
    candidates = request.candidates or 1
    prune: tuple[tuple[int, int], ...] = ()
    deltas: tuple[float, ...] | None = None
    if request.prune is not None:
        prune = _check_prune(request.prune, candidates, model.contract.F)
    prefix = _read_prefix(named.get("prefix"), request.committed, request.continuation, model)
    if request.deltas is not None:
        deltas = _check_deltas(request.deltas, back=prefix is not None and prefix.method == "inversion")
    return Job(
        reply_context=reply_context,
        fields=fields,
        seed=draw_seed() if request.seed is None else request.seed,
        received=received,
        due=None if request.budget is None else received + request.budget,
        candidates=candidates,
        value=bool(request.value),
        stream=bool(request.stream),
        prune=prune,
        deltas=deltas,
        candidate_offset=(request.first or 0) if deltas is not None else 0,
        pessimism=request.pessimism or 0.0,
        continuation=model.continuation(prefix),
        client=client,
    )


def read_jobs(
    request: headers.Act | headers.ActMany,
    fields: Arrays,
    named: Arrays,
    model: Model,
    context: ReplyContext,
    client: Client,
    received: float,
) -> list[Job]:
    """What an `act` request asks for, or `act_many` for each of its observations. Raises ProtocolError.

    More rows than one step takes are computed in waves, each with its part of the budget: else the first
    would spend all of it.
    """
    if isinstance(request, headers.Act):
        return [read_job(request, fields, named, model, context, client, received)]
    rows, candidates, budget = request.rows or 1, request.candidates or 1, request.budget
    if rows * candidates > MAX_BATCH_CHUNKS:
        raise ProtocolError(
            "bad_request", f"rows x candidates is {rows * candidates}, and may be {MAX_BATCH_CHUNKS}"
        )
    if request.seeds is not None and len(request.seeds) != rows:
        raise ProtocolError("bad_request", f"{len(request.seeds)} seeds came with {rows} observations")
    prune = () if request.prune is None else _check_prune(request.prune, candidates, model.contract.F)
    prefixes = _read_prefixes(request, named, rows, model)
    together = MAX_STEP_ROWS // candidates if candidates <= UNROLLED_ROWS else 1
    waves = math.ceil(rows / together)
    batch = Batch(rows, budget or 0.0)
    return [
        Job(
            reply_context=context._replace(batch=batch, row=row),
            fields={name: values[row : row + 1] for name, values in fields.items()},
            seed=draw_seed() if request.seeds is None else request.seeds[row],
            received=received,
            due=None if budget is None else received + budget * (row // together + 1) / waves,
            candidates=candidates,
            value=bool(request.value),
            prune=prune,
            pessimism=request.pessimism or 0.0,
            continuation=model.continuation(prefixes[row]),
            client=client,
        )
        for row in range(rows)
    ]


def _read_prefix(
    actions: Any, committed: int | None, continuation: Continuation | None, model: Model
) -> Prefix | None:
    """What a chunk continues, if anything. Raises ProtocolError."""
    asked = ResolvedOptions(prefix=actions, committed=committed, continuation=continuation)
    try:
        return read_prefix(asked, model.contract)
    except (UserError, TypeError) as error:
        raise ProtocolError("bad_request", str(error)) from error


def _read_prefixes(
    request: headers.ActMany, named: Arrays, rows: int, model: Model
) -> Sequence[Prefix | None]:
    """What each observation's chunk continues. Raises ProtocolError."""
    if "prefix" not in named:
        return [None] * rows
    actions, lengths = named["prefix"], request.lengths or ()
    committed = request.committed or lengths
    if len(lengths) != rows or len(committed) != rows or sum(lengths) != len(actions):
        raise ProtocolError(
            "bad_request",
            f"lengths and committed are to divide the {len(actions)} actions of prefix by {rows}",
        )
    ends = list(itertools.accumulate(lengths))
    return [
        _read_prefix(actions[end - length : end], count, request.continuation, model)
        for end, length, count in zip(ends, lengths, committed, strict=True)
    ]


def read_task(
    request: headers.Refine | headers.Value, fields: Arrays, named: Arrays, model: Model, task: Task
) -> tuple[int, Slices]:
    """How many rows a `refine` or `value` request has, and their work. Raises ProtocolError."""
    if isinstance(request, headers.Refine):
        x, f, delta = read_refinement(request, named, model)
        return len(x), refine_in_slices(model, task, fields, x, f, delta)
    x, f = read_valuation(request, named, model)
    return len(x), value_in_slices(model, task, fields, x, f)


def read_refinement(
    request: headers.Refine, named: Arrays, model: Model
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """x `[N, hA]`, f `[N, 1]`, delta `[N, 1]`: N rows for one observation."""
    x = _rows(named, "x", (model.chunk_dim,))
    f = _column("f", request.f, len(x))
    delta = _column("delta", request.delta, len(x))
    if (f + delta > 1.0 + 1e-6).any():
        raise ProtocolError("bad_request", "f + delta must not exceed 1")
    return x, f, delta


def read_valuation(
    request: headers.Value, named: Arrays, model: Model
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x `[N, hA]`, f `[N, 1]`: chunks `actions`, or partial actions `x` at `f`."""
    if "actions" in named:
        actions = _rows(named, "actions", (model.contract.h, model.contract.plant.action_dim))
        x, f = model.scaled(actions), np.ones((len(actions), 1), np.float32)
    else:
        x = _rows(named, "x", (model.chunk_dim,))
        f = _column("f", request.f, len(x))
    return x, f


def read_episode(
    request: headers.Episode, epoch: int, fields: Arrays, named: Arrays, model: Model
) -> EpisodePart:
    """What a control loop did and saw in some ticks. Raises ProtocolError."""
    actions = _rows(named, "actions", (model.contract.plant.action_dim,), range(MAX_TICKS + 1))
    rows, end = len(actions), bool(request.end)
    if not rows and not end:
        raise ProtocolError("bad_request", "a part of an episode needs ticks, or must be its end")
    seen = 1 if request.rows is None else request.rows
    # The observation after the last action comes with the episode's end, if the loop has it.
    if seen not in range(rows, rows + 1 + end):
        more = f" or {rows + 1}" if end else ""
        raise ProtocolError("bad_request", f"{rows} ticks come with {rows}{more} observations, not {seen}")
    rewards = _rows(named, "rewards", (), range(rows, rows + 1)) if "rewards" in named else None
    success = _rows(named, "success", (), range(rows, rows + 1)) != 0 if "success" in named else None
    intervened = _rows(named, "intervened", (), range(rows, rows + 1)) != 0 if "intervened" in named else None
    ages = _rows(named, "ages", (), range(rows, rows + 1)) if "ages" in named else None
    notes = decode_notes(named["notes"], rows) if "notes" in named else None
    return EpisodePart(
        epoch,
        request.episode,
        request.tick,
        end,
        fields,
        actions,
        rewards,
        success,
        intervened=intervened,
        ages=ages,
        notes=notes,
    )


def _column(name: str, value: float | Sequence[float] | None, rows: int) -> NDArray[np.float32]:
    """`[rows, 1]` from one number for all rows, or one for each."""
    entries = value if isinstance(value, list) else [value] * rows
    if value is None or len(entries) != rows:
        raise ProtocolError("bad_request", f"{name} must be a number, or one for each of the {rows} rows")
    return np.array(entries, np.float32)[:, None]


def _rows(
    named: Arrays, name: str, shape: tuple[int, ...], counts: range = range(1, MAX_ROWS + 1)
) -> NDArray[np.float32]:
    """The array `[N, *shape]` of that name, N among `counts`, as float32."""
    value = named.get(name)
    if value is None or value.ndim != len(shape) + 1 or value.shape[1:] != shape or len(value) not in counts:
        wanted = f"[{', '.join(map(str, ('N', *shape)))}] with N from {counts[0]} to {counts[-1]}"
        raise ProtocolError("bad_request", f"array '{name}' must have shape {wanted}")
    rows = np.asarray(value, np.float32)
    if not all_finite(rows):
        raise ProtocolError("bad_request", f"array '{name}' holds NaN or infinity")
    return rows


def _check_prune(
    prune: Sequence[tuple[int, int]], candidates: int, flow_steps: int
) -> tuple[tuple[int, int], ...]:
    step, kept = 0, candidates
    for k, keep in prune:
        if not (step < k < flow_steps and 1 <= keep <= kept):
            raise ProtocolError(
                "bad_request",
                f"prune must name rising steps below {flow_steps} and falling numbers of candidates",
            )
        step, kept = k, keep
    return tuple(prune)


def _check_deltas(deltas: Sequence[float], *, back: bool) -> tuple[float, ...]:
    """`back`: the flow may also go back, from 1 to 0."""
    if any(delta == 0 or (delta < 0 and not back) for delta in deltas):
        raise ProtocolError("bad_request", "deltas must be above 0")
    if any(not -1e-5 <= f <= 1.0 + 1e-5 for f in itertools.accumulate(deltas)):
        raise ProtocolError("bad_request", "deltas must keep the flow time in [0, 1]")
    if not math.isclose(sum(deltas), 1.0, abs_tol=1e-5):
        raise ProtocolError("bad_request", "deltas must sum to 1")
    return tuple(deltas)
