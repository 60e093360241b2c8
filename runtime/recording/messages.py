"""The messages of a recording. docs/recording.proto is made of these definitions and their docstrings.

Arrays are little-endian bytes here and packed repeated numbers in the published schema: on the wire the two
are the same, and no number is ever converted.
"""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any, NewType

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rql_deploy.policy import MAX_CANDIDATES
from rql_deploy.runtime.wire.notes import TickNote

_FLOAT32 = np.dtype("<f4")
Float = NewType("Float", float)
"""A float32 number in the file."""
Floats = NewType("Floats", bytes)
"""float32 numbers, in C order."""
Doubles = NewType("Doubles", bytes)
"""float64 numbers."""


class Array(Struct, omit_defaults=True):
    """One named field of an observation; its numbers, its bytes, or the picture that holds them."""

    name: str
    shape: list[int]
    values: Floats = Floats(b"")
    """Of a field of float32 numbers."""
    data: bytes = b""
    """Of a field of uint8 numbers that is no picture."""
    picture: str = ""
    """Topic of the foxglove.CompressedImage just before this message which holds this field. Several frames
    are one above the other, oldest at the top."""


class Previews(Struct, omit_defaults=True):
    """The chunks of some candidates after some refinement steps; each is a complete action."""

    steps: list[int]
    """Refinement steps so far, from 1; the last one of a decision makes it."""
    candidates: list[int]
    """Numbers of the candidates, in order."""
    actions: Floats = Floats(b"")
    """`[steps, candidates, h, A]`, in the plant's units."""


class Scores(Struct, omit_defaults=True):
    """V of some candidates after some refinement steps."""

    steps: list[int]
    """Refinement steps so far."""
    candidates: list[int]
    """Numbers of the candidates, in order."""
    values: Floats = Floats(b"")
    """`[steps, candidates]`: V."""
    spreads: Floats = Floats(b"")
    """`[steps, candidates]`: standard deviation of V over the members of the ensemble."""
    partial: bool = False
    """Whether V is of the partial actions, as pruning asks, instead of the previews."""


class Pruning(Struct, omit_defaults=True):
    """Which candidates went on after a refinement step."""

    step: int
    kept: list[int]
    """Numbers of the candidates."""


class Continued(Struct, omit_defaults=True):
    """The actions that played while the decision was made, which its chunk continues."""

    method: str
    """replacement, guidance, inversion or trained."""
    committed: int
    """Of the actions, how many played whatever was decided."""
    actions: Floats
    """`[n, A]`, in the plant's units, from the one that was due at the observation on."""


class Bundle(Struct, omit_defaults=True, tag="bundle"):
    """The contract that the messages after it were made under: first in every file, and after every swap."""

    time: float
    """Seconds since 1970."""
    contract_id: str
    contract: str
    """Canonical JSON (contract.schema.json)."""


class Decision(Struct, omit_defaults=True, tag="decision"):
    """One decision of the server, and what it was made from."""

    time: float
    """When it was sent, in seconds since 1970."""
    contract_id: str
    client: str
    """Of the connection, in hexadecimal."""
    seed: int
    """Of the noise: with the fields, deltas and candidate it gives the same bytes again."""
    fields: list[Array]
    """The observation."""
    chunk_shape: list[int]
    """h and A."""
    actions: Floats
    """`[h, A]`: the chunk that was sent."""
    candidates: int = 1
    """Chunks that were asked for."""
    candidate: int = 0
    """Number of the chunk that was sent."""
    compared: int = 1
    """Candidates that V chose among; 1 where V was not computed."""
    value: float | None = None
    """V of the chunk, where asked for."""
    spread: float | None = None
    """Its standard deviation over the members of the ensemble."""
    deltas: Doubles = Doubles(b"")
    """Flow time covered by each refinement step."""
    budget: float | None = None
    """Seconds that the server had, from receipt."""
    queue: float = 0.0
    """Seconds from receipt to the first computation."""
    inference: float = 0.0
    """Seconds from there to the decision."""
    server: float = 0.0
    """Seconds from receipt to the reply."""
    pruned: list[Pruning] = []
    previews: list[Previews] = []
    """After every refinement step that was computed by itself, in order; a step with other candidates begins
    a new entry. A request that needs nothing between its steps runs them in one call, and has only its
    last."""
    scores: list[Scores] = []
    """Every V that was computed, in order."""
    continued: Continued | None = None
    """Of a chunk that continues the actions which played while it was computed."""
    pessimism: float = 0.0
    """c: V chose by V - c * spread."""


class Tick(Struct, omit_defaults=True, tag="tick"):
    """One control period, as the control loop reported it."""

    time: float
    """When it began, in seconds since 1970, by the server's clock."""
    contract_id: str
    epoch: int
    """Of the loop's connection; with `episode` it names the episode."""
    episode: int
    tick: int
    """Number within the episode, from 0."""
    fields: list[Array]
    """The observation before the action."""
    action: Floats
    """`[A]`, as carried out."""
    reward: Float | None = None
    """Of the action, where the loop knows it."""
    success: bool | None = None
    """Whether the task had succeeded after the action, where the loop knows it."""
    intervened: bool | None = None
    """Whether a human's action replaced the policy's."""
    note: TickNote | None = None
    """Of a real-time loop: what the safety filter said, when, and of which decision."""


class EpisodeEnd(Struct, omit_defaults=True, tag="end"):
    """The end of an episode."""

    time: float
    contract_id: str
    epoch: int
    episode: int
    ticks: int
    """How many it had."""
    fields: list[Array] = []
    """The observation after the last action, where the loop reported it."""


Message = Bundle | Decision | Tick | EpisodeEnd
MESSAGES: dict[str, type[Any]] = {
    "/rql/bundle": Bundle,
    "/rql/decision": Decision,
    "/rql/tick": Tick,
    "/rql/episode_end": EpisodeEnd,
}
"""By topic."""
TOPICS = {cls: topic for topic, cls in MESSAGES.items()}
FRAME = struct.Struct("<I")
"""Before every message in the pipe to the writer's process: its bytes of msgpack."""


class Status(Struct):
    """What the writer's process says became of its messages so far."""

    written: int = 0
    lost: int = 0
    error: str = ""
    """Why the disk does not take the latest of them; empty when it does."""


def misfit(message: Message) -> str:
    """Of what the numbers are impossible, or not as many as the message says; empty where all fit."""
    if isinstance(message, Bundle):
        return ""
    for field in message.fields:
        held = len(field.values) // 4 or len(field.data)
        if not field.picture and (held != math.prod(field.shape) or min(field.shape, default=0) < 0):
            return f"field '{field.name}'"
    if isinstance(message, Tick):
        return "an action" if len(message.action) % 4 else ""
    if not isinstance(message, Decision):
        return ""
    if len(message.chunk_shape) != 2 or min(message.chunk_shape) < 1:
        return "a chunk"
    deltas = np.frombuffer(message.deltas[: len(message.deltas) // 8 * 8], "<f8")
    tables: list[Previews | Scores] = [*message.previews, *message.scores]
    if (
        not 0 <= message.candidate < message.candidates <= MAX_CANDIDATES
        or not (np.abs(deltas) < 1.01).all()
        or not all(table.steps and table.candidates for table in tables)
    ):
        return "a decision"
    numbers = math.prod(message.chunk_shape)
    expected = [(message.actions, numbers)]
    expected += [
        (made.actions, numbers * len(made.steps) * len(made.candidates)) for made in message.previews
    ]
    expected += [(scored.values, len(scored.steps) * len(scored.candidates)) for scored in message.scores]
    if message.continued is not None:
        rows = len(message.continued.actions) // (4 * message.chunk_shape[1])
        expected.append((message.continued.actions, rows * message.chunk_shape[1]))
    if any(len(data) != 4 * count for data, count in expected) or len(message.deltas) % 8:
        return "a decision"
    return ""


def floats(array: NDArray[Any]) -> Floats:
    """An array's numbers as float32."""
    # `is`: comparing types takes longer than copying a chunk.
    return Floats((array if array.dtype is _FLOAT32 else array.astype(_FLOAT32)).tobytes())


def pack(name: str, array: NDArray[Any]) -> Array:
    """A field of an observation."""
    if array.dtype == np.uint8:
        return Array(name, list(array.shape), data=array.tobytes())
    return Array(name, list(array.shape), floats(array))


def unpack(array: Array) -> NDArray[Any]:
    """The field as float32 or uint8; a read-only view."""
    if array.values:
        return np.frombuffer(array.values, "<f4").reshape(array.shape)
    dtype = "uint8" if array.data else "<f4"
    return np.frombuffer(array.data, dtype).reshape(array.shape)


def observation(message: Decision | Tick | EpisodeEnd) -> dict[str, NDArray[Any]]:
    """Its fields by name, `[*shape]`."""
    return {array.name: unpack(array) for array in message.fields}


def chunk(decision: Decision) -> NDArray[np.float32]:
    """The chunk that was sent, `[h, A]`."""
    return np.frombuffer(decision.actions, "<f4").reshape(decision.chunk_shape)


def values_by_candidate(decision: Decision) -> dict[tuple[int, int], float]:
    """Every V that was computed, by (step, number of the candidate)."""
    return {
        place: value
        for scored in decision.scores
        for place, value in zip(
            itertools.product(scored.steps, scored.candidates),
            np.frombuffer(scored.values, "<f4").tolist(),
            strict=True,
        )
    }


def previews(decision: Decision) -> list[tuple[int, list[int], NDArray[np.float32]]]:
    """(step, candidates, chunks `[candidates, h, A]`) of every preview."""
    found = []
    for made in decision.previews:
        shape = len(made.steps), len(made.candidates), *decision.chunk_shape
        actions = np.frombuffer(made.actions, "<f4").reshape(shape)
        found += [(step, made.candidates, chunks) for step, chunks in zip(made.steps, actions, strict=True)]
    return found
